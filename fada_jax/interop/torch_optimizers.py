"""Optimizer states of a released checkpoint, to and from optax's: moments, and schedules at the file's iteration.

The state of another kind of optimizer than the model's is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from fada_jax.errors import UserError
from fada_jax.interop import torch_tables
from fada_jax.interop.entries import Entry
from fada_jax.interop.tensors import check_tensor, first, printable, shown
from fada_jax.models import ModelSpec
from fada_jax.training.optimizers import OptimizerSpec

# Section of a released checkpoint -> section that holds its optimizer.
OPTIMIZERS = dict(zip(torch_tables.SECTIONS, ("optimizer_fea", "optimizer_cls", "optimizer_D"), strict=True))

# Tensors of an optimizer that are looked at; models have hundreds.
_MOST = 100_000
# What a torch optimizer keeps for each tensor once it has made a step -> our name of its kind.
_KINDS = {frozenset({"momentum_buffer"}): "sgd", frozenset({"step", "exp_avg", "exp_avg_sq"}): "adam"}


def read_iteration(file: Mapping[str, Any]) -> int | None:
    """Steps behind a released checkpoint; None where the file does not say.

    Raises:
      UserError: something else than a whole number of steps.
    """
    if not torch_tables.is_released(file) or "iteration" not in file:
        return None
    value = file["iteration"]
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise UserError(f"its iteration is {shown(value)}, not a whole number of steps: correct it or take it out")
    return value


def set_schedules(opt_state: Any, iteration: int) -> Any:
    """``opt_state`` with its learning rates where they stand after ``iteration`` steps; moments untouched.

    Adam's own count stays as well: it corrects the bias of moments that started from zero, so it belongs to the moments
    and not to the schedule. PyTorch likewise counts Adam's steps from its first moments on.
    """
    count = np.asarray(iteration, np.int32)
    is_schedule = lambda state: isinstance(state, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(lambda s: s._replace(count=count) if is_schedule(s) else s, opt_state, is_leaf=is_schedule)


@dataclasses.dataclass(frozen=True)
class Moments:
    """The state of one torch optimizer, with one entry a tensor of the model.

    Attributes:
      section: whose optimizer it is, a key of ``OPTIMIZERS``.
      tensors: what it keeps of each tensor, by slot; empty for a tensor that never had a step.
    """

    section: str
    tensors: tuple[Mapping[str, Any], ...]

    @property
    def untouched(self) -> int:
        """Tensors that never had a step: their moments are zero."""
        return sum(not slots for slots in self.tensors)


def read_moments(file: Mapping[str, Any], section: str) -> Moments:
    """The optimizer state of ``section``.

    Raises:
      UserError: the file has none, or something that is no optimizer state of PyTorch.
    """
    name = OPTIMIZERS[section]
    state = file.get(name)
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        raise UserError(f"the file has no optimizer state {name}")
    try:
        order = list(itertools.islice((i for group in state["param_groups"] for i in group["params"]), _MOST))
        if len(set(order)) < len(order):
            raise UserError(f"{name} keeps two states of one tensor")
        kept = [state["state"].get(index, {}) for index in order]
        # PyTorch's SGD without momentum keeps a slot with None in it.
        tensors = tuple({slot: value for slot, value in slots.items() if value is not None} for slots in kept)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{name} is no optimizer state of PyTorch") from error
    return Moments(section, tensors)


def _slot(moments: Moments, entries: Sequence[Entry], slot: str) -> dict:
    """Nested tree of one kind of moment; zeros for tensors that never had a step."""
    values = {}
    for entry, slots in zip(entries, moments.tensors, strict=True):
        value = slots.get(slot, np.zeros(entry.shape, np.float32))
        check_tensor(f"{slot} of {entry.name}", value, entry.shape)
        values[entry.name] = value
    return torch_tables.to_variables(entries, values)["params"]


def _check_kind(moments: Moments, kind: str) -> None:
    """Refuses moments that an optimizer of ``kind`` does not have: what it needs would silently be zero."""
    for slots in moments.tensors:
        if slots and _KINDS.get(frozenset(slots)) != kind:
            raise UserError(
                f"{OPTIMIZERS[moments.section]} keeps {first(sorted(map(printable, slots)))}, which is no state of the "
                f"config's optimizer of kind {kind!r}: set its kind to the file's or take that section out of the file"
            )


def _fill(states: Sequence[Any], moments: Moments, entries: Sequence[Entry], iteration: int) -> tuple:
    """An optax chain with the moments and counts of a torch optimizer; masked neighbours stay as they are."""
    if len(moments.tensors) != len(entries):
        raise UserError(
            f"the optimizer of {moments.section} has {len(moments.tensors)} tensors, the model {len(entries)}: it "
            "belongs to another network or another config.model.norm"
        )

    def fill(state: Any) -> Any:
        if isinstance(state, optax.TraceState):
            _check_kind(moments, "sgd")
            return state._replace(trace={**state.trace, **_slot(moments, entries, "momentum_buffer")})
        if isinstance(state, optax.ScaleByAdamState):
            _check_kind(moments, "adam")
            mu, nu = (_slot(moments, entries, slot) for slot in ("exp_avg", "exp_avg_sq"))
            return state._replace(count=_adam_count(moments), mu={**state.mu, **mu}, nu={**state.nu, **nu})
        return state

    return set_schedules(tuple(fill(state) for state in states), iteration)


def _adam_count(moments: Moments) -> np.ndarray:
    """Steps that Adam has made; ours counts them once for all tensors."""
    counts = {_whole(slots.get("step", 0)) for slots in moments.tensors}
    if None in counts:
        raise UserError(f"the optimizer of {moments.section} has a step count that is no number of steps")
    if len(counts) > 1:
        raise UserError(f"the optimizer of {moments.section} has parameters with different step counts")
    return np.asarray(counts.pop(), np.int32)


def _whole(value: Any) -> int | None:
    """A number of steps, which PyTorch keeps as a float or in a tensor; None: something else."""
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 2**31 and value == int(value) else None


def _trainable(entries: Iterable[Entry], section: str) -> list[Entry]:
    # Frozen batch norms are buffers in PyTorch: no optimizer knows them.
    return [entry for entry in entries if entry.section == section and entry.trainable]


def import_generator_optimizer(opt_state: Any, file: Mapping[str, Any], spec: ModelSpec, iteration: int) -> Any:
    """``opt_state`` of ``optimizers.generator_optimizer`` with the file's moments, its schedules set to ``iteration``.

    F and C have an optimizer each in the released code: where the file has one of them alone, the other's moments stay
    as they are.
    """
    opt_state = set_schedules(opt_state, iteration)
    inner = dict(opt_state.inner_states)
    for section, masked in inner.items():
        if OPTIMIZERS[section] in file:
            moments, entries = read_moments(file, section), _trainable(torch_tables.generator_table(spec), section)
            inner[section] = masked._replace(inner_state=_fill(masked.inner_state, moments, entries, iteration))
    return opt_state._replace(inner_states=inner)


def import_discriminator_optimizer(opt_state: Any, file: Mapping[str, Any], params: Mapping, iteration: int) -> Any:
    """``opt_state`` of ``optimizers.discriminator_optimizer`` likewise; the file must have it."""
    moments = read_moments(file, torch_tables.DISCRIMINATOR)
    return _fill(opt_state, moments, torch_tables.discriminator_table_of(params), iteration)


def _export_chain(
    states: Sequence[Any], entries: Sequence[Entry], optimizer: OptimizerSpec, multiplier: float, iteration: int
) -> dict[str, Any]:
    """State dict of the torch optimizer that would go on where the optax chain ``states`` stands."""
    moments: list[dict[str, Any]] = [{} for _ in entries]
    for state in states:
        slots: dict[str, Any] = {}
        if isinstance(state, optax.TraceState):
            slots = {"momentum_buffer": state.trace}
        elif isinstance(state, optax.ScaleByAdamState):
            slots = {"exp_avg": state.mu, "exp_avg_sq": state.nu}
            for moment in moments:
                moment["step"] = np.asarray(state.count, np.float32)
        for slot, tree in slots.items():
            for moment, entry in zip(moments, entries, strict=True):
                moment[slot] = torch_tables.to_tensor(entry, {"params": tree})
    # As optimizers.poly_schedule and warmed_up, which compute in float32; PyTorch's rates are float64.
    decayed = max(0.0, 1 - iteration / optimizer.schedule_steps) ** optimizer.power
    risen = iteration / optimizer.warmup_steps if iteration < optimizer.warmup_steps else decayed
    rate = optimizer.learning_rate * multiplier * risen
    group = {"lr": rate, "weight_decay": optimizer.weight_decay, "params": list(range(len(entries)))}
    group |= {"maximize": False, "foreach": None, "differentiable": False, "fused": None}
    if optimizer.kind == "sgd":
        group |= {"momentum": optimizer.momentum, "dampening": 0, "nesterov": False}
    else:
        group |= {"betas": (optimizer.b1, optimizer.b2), "eps": optimizer.eps, "amsgrad": False, "capturable": False}
        group |= {"decoupled_weight_decay": False}
    return {"state": dict(enumerate(moments)), "param_groups": [group]}


def export_generator_optimizer(
    opt_state: Any, spec: ModelSpec, optimizer: OptimizerSpec, iteration: int
) -> dict[str, dict[str, Any]]:
    """The sections ``optimizer_fea`` and ``optimizer_cls`` of a released checkpoint after ``iteration`` steps."""
    table = torch_tables.generator_table(spec)
    multipliers = {torch_tables.FEATURE_EXTRACTOR: 1.0, torch_tables.CLASSIFIER: optimizer.classifier_multiplier}
    return {
        OPTIMIZERS[section]: _export_chain(
            masked.inner_state, _trainable(table, section), optimizer, multipliers[section], iteration
        )
        for section, masked in opt_state.inner_states.items()
    }


def export_discriminator_optimizer(
    opt_state: Any, params: Mapping, optimizer: OptimizerSpec, iteration: int
) -> dict[str, dict[str, Any]]:
    """The section ``optimizer_D`` likewise."""
    state = _export_chain(opt_state, torch_tables.discriminator_table_of(params), optimizer, 1.0, iteration)
    return {OPTIMIZERS[torch_tables.DISCRIMINATOR]: state}
