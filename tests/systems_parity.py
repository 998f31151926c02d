"""Measures our systems against ``torch_systems``: one compiled step a case gives losses, gradients and updates."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import systems_networks as networks
import torch
import torch_reference as reference
import torch_systems as theirs

from fada_jax.interop import torch_tables
from fada_jax.methods import SYSTEMS, TrainingSpec
from fada_jax.preprocessing import IMAGENET
from fada_jax.training import optimizers

CLASSES = networks.SPEC.num_classes
SCHEDULE = theirs.Schedule(16)
ITERATIONS = 3
RELEASED, EQUAL = "released", "equal"


@dataclasses.dataclass(frozen=True)
class Case:
    """One system in one form.

    ``second`` is the stage that a second head reads; ``reads`` the channels that each discriminator has; ``start`` the
    progress at the first iteration.
    """

    name: str
    system: str
    build: Callable[..., theirs.System]
    options: theirs.Options = theirs.Options()
    ours: tuple[tuple[str, Any], ...] = ()
    model: tuple[tuple[str, Any], ...] = ()
    second: int = 0
    reads: tuple[int, ...] = ()
    start: float = 0.25

    @property
    def temperature(self) -> float:
        return self.options.temperature


class Measured(NamedTuple):
    """What a run gives: losses of each iteration, gradients of the first two kinds of batch, and the updates."""

    losses: list[dict[str, float]]
    gradients: dict[str, dict[str, list[np.ndarray]]]
    updates: dict[str, list[np.ndarray]]


def batches(index: int, unlabelled: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source images, labels and target images of another size, 2 + 2."""
    source, target = (2, 65, 49), (2, 49, 65)
    labels = parity.label(source, CLASSES, 10 * index + 2)
    if unlabelled:
        labels = np.full_like(labels, reference.IGNORE)
    return parity.picture(source, 10 * index + 1), labels, parity.picture(target, 10 * index + 3)


# The first iteration is run twice, from the same start: without labels, where all of G's gradient comes from the other
# losses whatever their weights, and with them.
FIRST = {"without labels": True, "with labels": False}


def progress(case: Case, index: int) -> float:
    """Exact in float32."""
    return case.start + index / 16


def nets_of(case: Case) -> tuple[networks.Generator, list[torch.nn.Module]]:
    g = networks.generator(case.second)
    torch.manual_seed(7)
    return g, [networks.patch_discriminator(channels) for channels in case.reads]


def _training(case: Case, g: networks.Generator, ds: Sequence[torch.nn.Module]) -> theirs.Training:
    sgd = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4)
    heads = [w for head in g.heads for w in head.parameters()]
    of_g = [sgd(g.f.parameters(), lr=2.5e-4), sgd(heads, lr=2.5e-3)]
    of_d = [torch.optim.Adam(d.parameters(), lr=1e-4, betas=(0.9, 0.99)) for d in ds]
    return theirs.Training(case.build(g, ds, case.options), of_g, of_d, SCHEDULE)


def run_theirs(case: Case, dtype: torch.dtype) -> Measured:
    start = nets_of(case)
    gradients, losses = {}, []
    for name, unlabelled in FIRST.items():
        g, ds = copy.deepcopy(start)
        g, ds = g.to(dtype), [d.to(dtype) for d in ds]
        named = networks.parts(g, ds)
        before = networks.tensors(named)
        training = _training(case, g, ds)
        for index in range(1 if unlabelled else ITERATIONS):
            x, y, x_t = batches(index, unlabelled)
            batch = parity.to_tensor(x, dtype), torch.from_numpy(y), parity.to_tensor(x_t, dtype)
            found = training.step(*batch, progress(case, index))
            if not index:
                gradients[name] = networks.tensors(named, gradient=True)
            if not unlabelled:
                losses.append(found)
    after = networks.tensors(named)
    return Measured(losses, gradients, difference(after, before))


def difference(after: Mapping[str, list], before: Mapping[str, list]) -> dict[str, list[np.ndarray]]:
    return {
        name: [
            np.asarray(a, np.float64) - np.asarray(b, np.float64)
            for a, b in zip(after[name], before[name], strict=True)
        ]
        for name in after
    }


def recording(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """``tx`` whose state is the last gradient beside its own."""

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params), tx.init(params)

    def update(gradient: Any, state: Any, params: Any = None) -> Any:
        updates, inner = tx.update(gradient, state[1], params)
        return updates, (gradient, inner)

    return optax.GradientTransformation(init, update)


def training_spec(case: Case, dtype: str) -> TrainingSpec:
    common = {"schedule_steps": SCHEDULE.steps, "power": SCHEDULE.power}
    return TrainingSpec(
        dataclasses.replace(networks.SPEC, dtype=dtype, **dict(case.model)),
        IMAGENET,
        optimizers.OptimizerSpec("sgd", 2.5e-4, weight_decay=5e-4, **common),
        optimizers.OptimizerSpec("adam", 1e-4, weight_decay=0.0, **common),
        networks.WIDTHS,
    )


def our_states(case: Case, method: Any, spec: TrainingSpec) -> dict[str, Any]:
    """States of the method's own making, with PyTorch's weights in them and optimizers that keep the gradient."""
    g, ds = nets_of(case)
    states = dict(method.init(jax.random.key(0), spec))
    dtype = spec.model.dtype
    variables = parity.generator_variables((g.f, g.c, parity.networks(networks.SPEC)[2]), networks.SPEC)
    variables = jax.tree.map(lambda x: np.asarray(x, dtype), variables)
    params = variables.pop("params")
    if g.second is not None:
        name = second_head(states["generator"].params)
        params[name] = networks.chain_from_torch(g.second, states["generator"].params[name], dtype)
    fresh = {"generator": (params, variables)}
    for name, d in zip(discriminator_names(states), ds, strict=True):
        fresh[name] = networks.chain_from_torch(d, states[name].params, dtype), {}
    for name, (params, collections) in fresh.items():
        old = states[name]
        assert jax.tree.map(jnp.shape, old.params) == jax.tree.map(jnp.shape, params), name
        tx = recording(old.tx)
        states[name] = old.replace(params=params, collections=collections, tx=tx, opt_state=tx.init(params))
    return states


def second_head(params: Mapping[str, Any]) -> str:
    (name,) = set(params) - {"feature_extractor", "classifier"}
    return name


def discriminator_names(states: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in states if name != "generator")


def our_tensors(states: Mapping[str, Any], of: Callable[[Any], Any]) -> dict[str, list[np.ndarray]]:
    """``of`` each state (its parameters, or the gradient kept), in PyTorch's layout and order."""
    state = states["generator"]
    tree = of(state)
    stats = state.collections.get("batch_stats", {})
    sections = torch_tables.export_generator(tree, stats, networks.SPEC)
    frozen = ("bn", "downsample.1", "running")
    found = {
        "F": [x for key, x in sections["feature_extractor"].items() if not any(word in key for word in frozen)],
        "C": list(sections["classifier"].values()),
    }
    if len(tree) > 2:
        found["C2"] = networks.chain_to_torch(tree[second_head(tree)])
    for i, name in enumerate(discriminator_names(states)):
        found[f"D{i}"] = networks.chain_to_torch(of(states[name]))
    return jax.tree.map(np.array, found)


def run_ours(case: Case, dtype: str = "float32") -> Measured:
    spec = training_spec(case, dtype)
    method = SYSTEMS[case.system].method(temperature=case.temperature, **dict(case.ours))
    step = jax.jit(functools.partial(method.step, spec=spec))
    start = our_states(case, method, spec)
    gradients, losses = {}, []
    for name, unlabelled in FIRST.items():
        states = start
        for index in range(1 if unlabelled else ITERATIONS):
            x, y, x_t = batches(index, unlabelled)
            batch = {"source": {"image": x, "label": y}, "target": {"image": x_t}}
            states, metrics = step(states, batch, jax.random.key(0), jnp.asarray(progress(case, index), jnp.float32))
            if not index:
                gradients[name] = our_tensors(states, lambda state: state.opt_state[0])
            if not unlabelled:
                losses.append({key: float(value) for key, value in metrics.items()})
    after, before = (our_tensors(s, lambda state: state.params) for s in (states, start))
    return Measured(losses, gradients, difference(after, before))


def worst(value: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Relative error of the worst tensor; infinite where ours is not 0 and the truth is."""
    errors = [0.0]
    for v, t in zip(value, truth, strict=True):
        if np.any(t):
            errors.append(parity.relative(v, t))
        elif np.any(v):
            errors.append(np.inf)
    return max(errors)


def rows(case: Case, ours: Measured, single: Measured, truth: Measured, named: Callable) -> list[parity.Row]:
    """All errors; ``named`` makes the losses that our step logs of the reference's."""
    found = []
    for i in range(ITERATIONS):
        expected, beside = named(truth.losses[i], case), named(single.losses[i], case)
        for key, value in expected.items():
            error, of_torch = (parity.relative(x, value) for x in (ours.losses[i][key], beside[key]))
            found.append(parity.Row(f"{case.name}: {key}, iteration {i + 1}", error, of_torch, parity.LOSS))
    for kind in FIRST:
        for net, gradient in truth.gradients[kind].items():
            errors = [worst(run.gradients[kind][net], gradient) for run in (ours, single)]
            found.append(parity.Row(f"{case.name}: gradient of {net} {kind}", *errors, parity.GRADIENT))
    for net, update in truth.updates.items():
        errors = [parity.relative(run.updates[net], update) for run in (ours, single)]
        found.append(parity.Row(f"{case.name}: update of {net}", *errors, parity.UPDATE))
    return found
