"""What an import says to people: what became of a file, and which arrays of ours are not from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fada_jax.interop import lineage, reading, torch_optimizers, torch_tables
from fada_jax.interop.entries import CLASSIFIER, DISCRIMINATOR, FEATURE_EXTRACTOR, Report
from fada_jax.interop.reading import Description
from fada_jax.models import ModelSpec
from fada_jax.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of a file, and which of our arrays are not from it.

    Attributes:
      tensors: what became of every tensor.
      notes: lines for people on all that no tensor's name tells: the step, optimizers, the discriminator.
      left: sections that stay in the file.
    """

    tensors: Report
    notes: tuple[str, ...]
    left: tuple[str, ...]


def step_note(named: int | None, total: int) -> str:
    """Where training stands; ``named``: the file's iteration."""
    if named is None:
        return "step 0: the file names no iteration"
    if named > total:
        return (
            f"step {named} is beyond config.total_steps={total}: the workdir is to evaluate, to predict, for init_from "
            "and for teacher_from, not to train on"
        )
    return f"step {named} of {total}" + (": finished" if named == total else "")


def discriminator_note(name: str, iteration: int) -> str:
    """Says that a discriminator is fresh."""
    note = f"{name}: not in the file, freshly initialised"
    if not iteration:
        return note
    return (
        f"{note} in the middle of the stage: to begin it with these weights, import them without --config and name "
        "that workdir in config.init_from"
    )


def optimizer_notes(
    file: Mapping[str, Any], left: Collection[str], states: checkpoints.States, iteration: int
) -> Iterator[str]:
    """Where the state of each optimizer comes from."""
    optimizers = torch_optimizers.OPTIMIZERS.items()
    sections = [section for section, name in optimizers if name in file and name not in left]
    moments = {section: torch_optimizers.read_moments(file, section) for section in sections}
    extractor, classifier = FEATURE_EXTRACTOR in moments, CLASSIFIER in moments
    groups: dict[str, tuple[str, ...]] = {"G": (FEATURE_EXTRACTOR, CLASSIFIER)}
    if extractor != classifier:
        groups = {"F": (FEATURE_EXTRACTOR,), "C": (CLASSIFIER,)}
    sections_of = {name: lineage.DISCRIMINATORS.get(name, name) for name in states if name != "generator"}
    groups |= {"D" if section == DISCRIMINATOR else name: (section,) for name, section in sections_of.items()}
    for network, parts in groups.items():
        schedule = f"its schedule at step {iteration}"
        if parts[0] not in moments:
            yield f"optimizer of {network}: not in the file, starts from zero moments, {schedule}"
            continue
        untouched = sum(moments[section].untouched for section in parts)
        zeros = f", zero moments for the {untouched} tensors that had no step yet" if untouched else ""
        yield f"optimizer of {network}: from the file{zeros}, {schedule}"


def norm_note(file: Mapping[str, Any], described: Description | None, spec: ModelSpec) -> str:
    """Says where batch norm is live in the file and frozen in the config, or the other way round."""
    if spec.backbone == "vgg16" or not torch_tables.has_classifier(file):
        return ""
    norm = described.spec.norm if described else reading.norm_of(file)
    return f"batch norm: {norm} in the file, {spec.norm} from now on" if norm != spec.norm else ""


def account_lines(account: Account) -> Iterator[str]:
    for kind in ("used", "dropped", "initialised"):
        # Batch norm's counters say nothing about the weights; the names worth reading come first.
        names = sorted(getattr(account.tensors, kind), key=lambda name: name.endswith("num_batches_tracked"))
        shown = f": {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield f"  {len(names):>4} {kind}" + (shown if kind != "used" and names else "")
    yield from (f"  {note}" for note in account.notes)
    if account.left:
        yield f"  sections left in the file: {', '.join(account.left)}"
