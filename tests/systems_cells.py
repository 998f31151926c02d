"""FCNs in the wild, Cross-City and AdaptPatch as cases of ``systems_parity``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import parity
import systems_networks as networks
import systems_parity
import torch
import torch_systems_cells as theirs
from systems_parity import CLASSES, SCHEDULE, Case, added

from fada_jax.methods import adaptpatch, crosscity, fcn_wild

__all__ = ["CellCase", "cases", "measure"]

WIDTH, PATCH, CLUSTERS = 8, (8, 16), 6
RAMP, DROPOUT = 32, 0.5
# Cells are 8x8 pixels, whole ones alone: at the edge of other sizes the description leaves open what a cell is.
SIZES = ((2, 64, 48), (2, 48, 64))
CHANNELS = 4 * networks.SPEC.widths[3]


@dataclasses.dataclass(frozen=True)
class CellCase(Case):
    """A system of single cells or patches.

    Its first iteration is the fifth of a run, so that the ramps have begun.
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...]] = SIZES

    @property
    def losses(self) -> tuple[str, ...]:
        more = {"crosscity": ("loss_adv_classes", "loss_d_classes"), "adaptpatch": ("loss_clusters", "loss_patch")}
        more["fcn_wild"] = ("loss_size",) if dict(self.ours).get("lambda_constraint", 1.0) else ()
        return ("loss_seg", "loss_adv", "loss_d", *more[self.system])

    def networks(self) -> tuple[networks.Generator, list[torch.nn.Module]]:
        g = networks.generator()
        torch.manual_seed(7)
        if self.system != "adaptpatch":
            count = 1 + (CLASSES if self.system == "crosscity" else 0)
            return g, [with_dropout(networks.pointwise(CHANNELS, (WIDTH, WIDTH), 2)) for _ in range(count)]
        g.patch_head = theirs.PatchHead(CLASSES, WIDTH, CLUSTERS)
        with torch.no_grad():
            # Clusters that a prediction makes a difference to.
            for weight in g.patch_head.parameters():
                weight.mul_(3.0)
        return g, [networks.patch_discriminator(CLASSES), networks.pointwise(CLUSTERS, (256, 512), 1, 0.2)]

    def ours_of(self, states: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        if self.system == "adaptpatch":
            names = (adaptpatch.DISCRIMINATORS[0], adaptpatch.HEAD, adaptpatch.CLUSTER_DISCRIMINATOR)
            return dict(zip(names, (("D0",), ("H",), ("D1",)), strict=True))
        found = {fcn_wild.DISCRIMINATOR: ("D0",)}
        if self.system == "crosscity":
            found[crosscity.CLASS_DISCRIMINATORS] = tuple(f"D{k + 1}" for k in range(CLASSES))
        return found

    def logged(self, terms: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Each loss without its weight, AdaptPatch's 0 during the warm-up."""
        found = {"loss_seg": added(terms, "seg")}
        if self.system == "adaptpatch":
            lambdas = self.options.lambda_adv, self.options.lambda_patch
            found["loss_clusters"] = terms["clusters"][1]
            for name, term, weight in zip(("loss_adv", "loss_patch"), ("adv0", "adv_patch"), lambdas, strict=True):
                found[name] = added(terms, term) / weight
            return {**found, "loss_d": added(terms, "d0_", "d_patch_")}
        names = {"confusion": "loss_adv", "class_confusion": "loss_adv_classes", "constraint": "loss_size"}
        names |= {"d0": "loss_d", "d_classes": "loss_d_classes"}
        return {**found, **{name: terms[term][1] for term, name in names.items() if term in terms}}


def kept(shape: Sequence[int], share: float) -> np.ndarray:
    """What dropout keeps of [h, w, C]: drawn once, so that both sides keep the same."""
    return np.random.default_rng(0).random(tuple(shape)) < share


class Dropout(torch.nn.Module):
    """Leaves out the same numbers whenever it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.from_numpy(kept((*x.shape[2:], x.shape[1]), 1 - DROPOUT)).permute(2, 0, 1)
        return x * mask / (1 - DROPOUT)


def with_dropout(net: torch.nn.Sequential) -> torch.nn.Sequential:
    """Dropout behind each activation."""
    modules: list[torch.nn.Module] = []
    for module in net:
        modules += [module] if isinstance(module, torch.nn.Conv2d) else [module, Dropout()]
    return torch.nn.Sequential(*modules)


def measure(case: Case, dtype: str = "float32") -> list[parity.Row]:
    """``systems_parity.measure`` with the dropout of the reference."""
    drawn = lambda key, share, shape: jnp.asarray(kept(shape, share))  # noqa: E731
    with mock.patch.object(jax.random, "bernoulli", drawn):
        return systems_parity.measure(case, dtype)


def class_sizes() -> theirs.ClassSizes:
    """Bounds that some predictions are beyond, of a class that is always large, and of one that no image holds."""
    low, mean, high = [0.02, 0.05, 0.15, 0.01, 0.0], [0.1, 0.15, 0.4, 0.05, 0.0], [0.27, 0.3, 0.6, 0.22, 0.0]
    # Ours are kept in float32.
    return theirs.ClassSizes(*(np.float64(np.float32(x)) for x in (low, mean, high)))


def centres() -> np.ndarray:
    """Histograms of some patches, and a mean of all: what K-means gives is as good as any."""
    labels = parity.label((8, *SIZES[0][1:]), CLASSES, 1)
    found = np.concatenate([theirs.patch_histograms(one, CLASSES, PATCH).reshape(-1, 4 * CLASSES) for one in labels])
    chosen = [*found[:: len(found) // CLUSTERS][: CLUSTERS - 1], found.mean(0)]
    return np.float64(np.float32(chosen))


def cases() -> dict[str, Case]:
    """Those of ``systems_parity``, and these with the options' defaults and with FADA's temperature."""
    sizes, middles = class_sizes(), centres()
    ours = {"width": WIDTH, "dropout": DROPOUT, "ramp_steps": RAMP}
    patches = dict(zip(("patch_height", "patch_width"), PATCH, strict=True))
    patches |= {"clusters": CLUSTERS, "head_width": WIDTH, "lambda_adv": 5e-4}
    begun, steps = {"ramp": RAMP / SCHEDULE.steps}, SCHEDULE.steps
    bounded, free = (functools.partial(theirs.FcnWild, sizes=x) for x in (sizes, None))
    unbounded = {**ours, "lambda_constraint": 0.0}
    # So cheap a slack that some lower bounds are given up.
    strong = {"lambda_adv": 0.1, "slack": 1.0}
    patched = functools.partial(theirs.AdaptPatch, centres=middles, patch=PATCH)
    adaptive = {"lambda_adv": 5e-4}
    # Name, reference, options of the reference, those of ours, further fields. The first iteration is number 4.
    table: list[tuple[str, Any, dict, dict, dict]] = [
        ("fcn_wild", bounded, begun, ours, {}),
        ("fcn_wild-adam", bounded, {**begun, **strong}, {**ours, **strong}, {"optimizer": "adam"}),
        # Where the constraint's gradient does not outweigh the other's.
        ("fcn_wild-unbounded", free, begun, unbounded, {}),
        ("crosscity", theirs.CrossCity, {**begun, "class_start": 1 / steps}, {**ours, "class_start_steps": 1}, {}),
        # The class-wise loss begins in the second iteration.
        ("crosscity-late", theirs.CrossCity, {**begun, "class_start": 4 / steps}, {**ours, "class_start_steps": 4}, {}),
        ("adaptpatch", patched, {**adaptive, "warm_up": 0.0}, {**patches, "warmup_steps": 0}, {}),
        # The warm-up ends after the first iteration.
        ("adaptpatch-late", patched, {**adaptive, "warm_up": 5 / steps}, {**patches, "warmup_steps": 5}, {}),
    ]
    known = {"fcn_wild": tuple(sizes._asdict().items()), "adaptpatch": (("centres", middles),)}
    found = systems_parity.cases()
    for form, temperature in (("default", 1.0), ("equal", 1.8)):
        for name, build, options, method, fields in table:
            system = name.partition("-")[0]
            settings = theirs.CellOptions(temperature=temperature, **options)
            rest = {"ours": tuple(method.items()), "known": known.get(system, ()), **fields}
            found[f"{name} {form}"] = CellCase(f"{name} {form}", system, build, settings, **rest)
    return found
