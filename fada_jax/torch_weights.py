"""PyTorch weights and optimizer states, released by the authors or by torchvision, to and from our variables.

Every correspondence comes from one table, ``generator_table`` or ``discriminator_table``: a tensor of the released
code, where it lives in our variables, and its shape. Convolutions change from OIHW to HWIO; vectors stay as they are.

The released VGG is torchvision's ``features`` as one ``nn.Sequential`` without pool4 (index 23) and pool5 (index 30),
followed by fc6, ReLU, fc7, ReLU: conv5 has the indices 23, 25, 27, fc6 is 29 and fc7 is 31.

Nothing is assumed: a tensor that is missing, unknown, of another shape or not finite is refused, and so is the state of
another kind of optimizer. All functions are pure NumPy; only ``read_file`` needs PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from fada_jax.errors import UserError
from fada_jax.models import ModelSpec
from fada_jax.models.resnet import DEPTHS
from fada_jax.optim import OptimizerSpec

# Section of a released checkpoint -> section that holds its optimizer.
OPTIMIZERS = {"feature_extractor": "optimizer_fea", "classifier": "optimizer_cls", "model_D": "optimizer_D"}

# What a torch optimizer keeps for each tensor once it has made a step -> our name of its kind.
_KINDS = {frozenset({"momentum_buffer"}): "sgd", frozenset({"step", "exp_avg", "exp_avg_sq"}): "adam"}

# Key of a .safetensors file's metadata under which a checkpoint's own description travels.
METADATA = "fada_jax"

# Index in the released nn.Sequential -> our name.
_VGG_INDEX = {
    **{0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1", 12: "conv3_2", 14: "conv3_3"},
    **{17: "conv4_1", 19: "conv4_2", 21: "conv4_3", 23: "conv5_1", 25: "conv5_2", 27: "conv5_3", 29: "fc6", 31: "fc7"},
}
_VGG_POOL4 = 23


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the released code.

    Attributes:
      section: state dict that holds it, a key of ``OPTIMIZERS``.
      key: its name there.
      path: collection and names of the array in our variables.
      shape: its shape in PyTorch.
      part: range of our output channels that it holds; None: all of them.
    """

    section: str
    key: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    part: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def trainable(self) -> bool:
        return self.path[0] == "params"


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every tensor: read from the file, left in the file, or kept from random initialisation."""

    used: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]


def _conv(
    section: str, key: str, path: Sequence[str], outputs: int, inputs: int, kernel: int, bias: bool
) -> Iterator[Entry]:
    yield Entry(section, f"{key}.weight", ("params", *path, "kernel"), (outputs, inputs, kernel, kernel))
    if bias:
        yield Entry(section, f"{key}.bias", ("params", *path, "bias"), (outputs,))


def _norm(key: str, path: Sequence[str], channels: int, norm: str) -> Iterator[Entry]:
    affine = "batch_stats" if norm == "frozen" else "params"
    for theirs, collection, ours in (
        ("weight", affine, "scale"),
        ("bias", affine, "bias"),
        ("running_mean", "batch_stats", "mean"),
        ("running_var", "batch_stats", "var"),
    ):
        yield Entry("feature_extractor", f"{key}.{theirs}", (collection, *path, ours), (channels,))


def _resnet(spec: ModelSpec) -> Iterator[Entry]:
    top = "feature_extractor"
    kind, depth_sizes = DEPTHS[int(spec.backbone.removeprefix("resnet"))]
    expansion = 4 if kind == "bottleneck" else 1
    yield from _conv(top, "backbone.conv1", (top, "conv1"), spec.stem_width, 3, 7, False)
    yield from _norm("backbone.bn1", (top, "bn1"), spec.stem_width, spec.norm)
    inputs, reached = spec.stem_width, 4 if spec.stem_pool else 2
    sizes, widths = spec.stage_sizes or depth_sizes, spec.widths or (64, 128, 256, 512)
    for stage, (blocks, width) in enumerate(zip(sizes, widths, strict=True), start=1):
        # A stride turned into dilation leaves the spatial size alone and so needs no projection of its own.
        stride = 1 if stage == 1 or reached * 2 > spec.output_stride else 2
        reached *= stride
        outputs = width * expansion
        kernels = ((width, 1), (width, 3), (outputs, 1)) if kind == "bottleneck" else ((width, 3), (outputs, 3))
        for block in range(blocks):
            key, path = f"backbone.layer{stage}.{block}", (top, f"layer{stage}_{block}")
            channels = inputs
            for i, (features, kernel) in enumerate(kernels, start=1):
                yield from _conv(top, f"{key}.conv{i}", (*path, f"conv{i}"), features, channels, kernel, False)
                yield from _norm(f"{key}.bn{i}", (*path, f"bn{i}"), features, spec.norm)
                channels = features
            if block == 0 and (stride != 1 or inputs != outputs):
                yield from _conv(top, f"{key}.downsample.0", (*path, "downsample_conv"), outputs, inputs, 1, False)
                yield from _norm(f"{key}.downsample.1", (*path, "downsample_bn"), outputs, spec.norm)
            inputs = outputs


def _vgg(spec: ModelSpec) -> Iterator[Entry]:
    top = "feature_extractor"
    widths = spec.widths or (64, 128, 256, 512, 512, 1024)
    inputs = 3
    for index, name in _VGG_INDEX.items():
        outputs = widths[5] if name.startswith("fc") else widths[int(name[4]) - 1]
        yield from _conv(top, f"backbone.{index}", (top, name), outputs, inputs, 3, True)
        inputs = outputs


def generator_table(spec: ModelSpec) -> tuple[Entry, ...]:
    """Every tensor of F and C, in the order of PyTorch's ``state_dict()`` and so of ``parameters()``.

    Raises:
      UserError: the model has a normalisation that the released code does not know.
    """
    if spec.backbone != "vgg16" and spec.norm == "group":
        raise UserError("a model with norm 'group' has no PyTorch counterpart: use norm 'frozen' or 'live'")
    entries = list(_vgg(spec) if spec.backbone == "vgg16" else _resnet(spec))
    features = entries[-1].shape[0]
    for i in range(len(spec.aspp_rates)):
        path = ("classifier", f"conv{i}")
        entries += _conv("classifier", f"conv2d_list.{i}", path, spec.num_classes, features, 3, True)
    return tuple(entries)


def discriminator_table(num_outputs: int, features: int, widths: Sequence[int] = (256, 128)) -> tuple[Entry, ...]:
    """Every tensor of D; its two heads are the halves of our one."""
    entries = [
        *_conv("model_D", "D.0", ("conv0",), widths[0], features, 3, True),
        *_conv("model_D", "D.2", ("conv1",), widths[1], widths[0], 3, True),
    ]
    half = num_outputs // 2
    for key, part in (("cls1", (0, half)), ("cls2", (half, num_outputs))):
        head = _conv("model_D", key, ("head",), half, widths[1], 3, True)
        entries += [dataclasses.replace(entry, part=part) for entry in head]
    return tuple(entries)


def to_ours(array: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours, float32."""
    array = np.asarray(array, np.float32)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def to_torch(array: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's."""
    array = np.asarray(array)
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def _tree(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]) -> dict:
    """Nested variables from arrays in PyTorch's layout; parts of one array are joined along the outputs."""
    tree: dict = {}
    for entry in entries:
        node = tree
        for name in entry.path[:-1]:
            node = node.setdefault(name, {})
        parts = [node[entry.path[-1]]] if entry.part and entry.part[0] else []
        node[entry.path[-1]] = np.concatenate([*parts, to_ours(arrays[entry.name])], axis=-1)
    return tree


def _take(variables: Mapping, entry: Entry) -> np.ndarray:
    """The tensor of ``entry`` in PyTorch's layout."""
    node: Any = variables
    for name in entry.path:
        node = node[name]
    node = np.asarray(node)
    return to_torch(node if entry.part is None else node[..., slice(*entry.part)])


def _strip_module(tensors: Any, name: str) -> dict[str, Any]:
    """The state dict ``name`` without the prefix that training on several GPUs adds."""
    if not isinstance(tensors, Mapping):
        raise UserError(f"{name} is no state dict")
    return {str(key).removeprefix("module."): value for key, value in tensors.items()}


def is_released(file: Mapping[str, Any]) -> bool:
    """Whether ``file`` is a checkpoint of the released code (else: the plain state dict of an ImageNet model)."""
    return any(section in file for section in OPTIMIZERS)


def generator_tensors(file: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All tensors meant for F and C under the names ``section.key`` of the released code.

    ImageNet models keep what has no place here (``fc``, VGG's ``classifier``) under their own names.
    """
    if is_released(file):
        sections = {name: _strip_module(file.get(name, {}), name) for name in ("feature_extractor", "classifier")}
        return {f"{section}.{key}": value for section, tensors in sections.items() for key, value in tensors.items()}
    renamed = {}
    for key, value in _strip_module(file.get("state_dict", file), "state_dict").items():
        if match := re.fullmatch(r"features\.(\d+)\.(\w+)", key):
            index = int(match[1])
            key = f"feature_extractor.backbone.{index - (index > _VGG_POOL4)}.{match[2]}"
        elif not key.startswith(("fc.", "classifier.")):
            key = f"feature_extractor.backbone.{key}"
        renamed[key] = value
    return renamed


def _architecture(names: Iterable[str]) -> str:
    """What kind of backbone tensors of these names belong to."""
    blocks = [m for m in (re.search(r"backbone\.layer(\d+)\.(\d+)\.conv(\d)", name) for name in names) if m]
    if blocks:
        counts = [str(len({m[2] for m in blocks if m[1] == stage})) for stage in sorted({m[1] for m in blocks})]
        kind = "bottleneck" if any(m[3] == "3" for m in blocks) else "basic"
        return f"a ResNet of {'-'.join(counts)} {kind} blocks"
    if any(re.search(r"backbone\.\d+\.weight", name) for name in names):
        return "a VGG-16"
    return "no known backbone"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_tensors(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses tensors that are not exactly those of a model.

    Args:
      tensors: by name.
      shapes: that the model needs, by name.

    Raises:
      UserError: naming what is missing, unknown, of another shape, not floating-point or not finite.
    """
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise UserError(f"the file lacks {_some(missing)}")
    unknown = [name for name in tensors if name not in shapes]
    if unknown:
        raise UserError(f"the file holds {_some(unknown)}, unknown to the model")
    for name, wanted in shapes.items():
        _check_array(name, tensors[name])
        shape = np.shape(tensors[name])
        if shape != wanted:
            hint = ""
            if name.startswith("classifier.") and shape[:1] != wanted[:1]:
                hint = f": a classifier of {shape[0] if shape else 0} classes cannot serve a model of {wanted[0]}"
            raise UserError(f"{name} has shape {shape} in the file, the model needs {wanted}{hint}")
        _check_numbers(name, tensors[name])


def _check_array(name: str, value: Any) -> None:
    if not isinstance(value, np.ndarray | np.generic):
        raise UserError(f"{name} is a {type(value).__name__}, not a tensor")


def _check_numbers(name: str, value: np.ndarray) -> None:
    if not np.issubdtype(value.dtype, np.floating):
        raise UserError(f"{name} is not an array of floating-point numbers")
    if not np.isfinite(value).all():
        raise UserError(f"{name} holds a NaN or an infinity: take a checkpoint from before the run broke")


def _assemble(
    entries: Sequence[Entry], tensors: Mapping[str, Any], dropped: Sequence[str], initial: Mapping[str, np.ndarray]
) -> tuple[dict, Report]:
    """Variables from ``tensors``, and from ``initial`` where a tensor is missing; everything is accounted for."""
    values = {**initial, **{name: value for name, value in tensors.items() if name not in dropped}}
    check_tensors(values, {entry.name: entry.shape for entry in entries})
    used = tuple(entry.name for entry in entries if entry.name in tensors)
    initialised = tuple(entry.name for entry in entries if entry.name not in tensors)
    return _tree(entries, values), Report(used, tuple(name for name in tensors if name in dropped), initialised)


def check_backbone(file: Mapping[str, Any], spec: ModelSpec) -> None:
    """Refuses a file whose backbone is another than the model's.

    Raises:
      UserError: naming both.
    """
    table = generator_table(spec)
    found, wanted = (_architecture(names) for names in (generator_tensors(file), [entry.name for entry in table]))
    if found != wanted:
        raise UserError(f"the file holds {found}, the model {spec.backbone} is {wanted}")


def import_generator(
    file: Mapping[str, Any], spec: ModelSpec, initial: Mapping[str, Any] | None = None
) -> tuple[dict, dict, Report]:
    """Parameters and batch statistics of G.

    Args:
      file: a released checkpoint (sections) or the state dict of an ImageNet model, as ``read_file`` returns it.
      spec: the model to fill.
      initial: freshly initialised variables (``params`` and ``batch_stats``), from which an ImageNet model takes what
        it lacks: the classifier, and VGG's fc6 and fc7.

    Returns:
      ``params``, ``batch_stats`` (empty for VGG), and what became of every tensor.

    Raises:
      UserError: another backbone or class count, or a tensor that is missing, unknown or of the wrong shape.
    """
    check_backbone(file, spec)
    table = generator_table(spec)
    tensors = generator_tensors(file)
    dropped = [name for name in tensors if name.endswith(".num_batches_tracked")]
    fresh: dict[str, np.ndarray] = {}
    if not is_released(file):
        dropped += [name for name in tensors if name.startswith(("fc.", "classifier."))]
        if initial is not None:
            new = [e for e in table if e.section == "classifier" or e.path[-2] in ("fc6", "fc7")]
            fresh = {entry.name: _take(initial, entry) for entry in new}
    variables, report = _assemble(table, tensors, dropped, fresh)
    return variables["params"], variables.get("batch_stats", {}), report


def export_generator(
    params: Mapping, batch_stats: Mapping, spec: ModelSpec, num_batches_tracked: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """The sections ``feature_extractor`` and ``classifier`` of a released checkpoint; inverse of ``import_generator``.

    Args:
      num_batches_tracked: training batches seen so far; PyTorch's live batch norm stores it beside each average.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    sections: dict[str, dict[str, np.ndarray]] = {"feature_extractor": {}, "classifier": {}}
    for entry in generator_table(spec):
        sections[entry.section][entry.key] = _take(variables, entry)
        if spec.norm == "live" and entry.key.endswith(".running_var"):
            counter = entry.key.replace("running_var", "num_batches_tracked")
            sections[entry.section][counter] = np.asarray(num_batches_tracked, np.int64)
    return sections


def import_discriminator(
    file: Mapping[str, Any], num_outputs: int, features: int, widths: Sequence[int] = (256, 128)
) -> tuple[dict, Report]:
    """Parameters of D from the section ``model_D``, and what became of every tensor.

    Raises:
      UserError: no such section, or a tensor that is missing, unknown or of the wrong shape.
    """
    if "model_D" not in file:
        raise UserError("the file has no section model_D: it is not of the adversarial stage")
    tensors = {f"model_D.{key}": value for key, value in _strip_module(file["model_D"], "model_D").items()}
    variables, report = _assemble(discriminator_table(num_outputs, features, widths), tensors, (), {})
    return variables["params"], report


def _discriminator_table_of(params: Mapping) -> tuple[Entry, ...]:
    shapes = [np.shape(params[name]["kernel"]) for name in ("conv0", "conv1", "head")]
    return discriminator_table(shapes[2][-1], shapes[0][2], (shapes[0][3], shapes[1][3]))


def export_discriminator(params: Mapping) -> dict[str, np.ndarray]:
    """The section ``model_D`` of a released checkpoint."""
    return {entry.key: _take({"params": params}, entry) for entry in _discriminator_table_of(params)}


def read_iteration(file: Mapping[str, Any]) -> int | None:
    """Steps behind a released checkpoint; None where the file does not say.

    Raises:
      UserError: something else than a whole number of steps.
    """
    value = file.get("iteration")
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if value is None and "iteration" not in file:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        shown = " ".join(repr(value)[:60].split())
        raise UserError(f"its iteration is {shown}, not a whole number of steps: correct it or take it out")
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
        order = [index for group in state["param_groups"] for index in group["params"]]
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
        value, name = slots.get(slot, np.zeros(entry.shape, np.float32)), f"{slot} of {entry.name}"
        _check_array(name, value)
        if value.shape != entry.shape:
            raise UserError(f"{name} has shape {value.shape}, the model needs {entry.shape}")
        _check_numbers(name, value)
        values[entry.name] = value
    return _tree(entries, values)["params"]


def _check_kind(moments: Moments, kind: str) -> None:
    """Refuses moments that an optimizer of ``kind`` does not have: what it needs would silently be zero."""
    for slots in moments.tensors:
        if slots and _KINDS.get(frozenset(slots)) != kind:
            raise UserError(
                f"{OPTIMIZERS[moments.section]} keeps {', '.join(sorted(map(str, slots)))}, which is no state of the "
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
    try:
        counts = {int(np.asarray(slots.get("step", 0)).item()) for slots in moments.tensors}
        count = np.asarray(max(counts), np.int32)
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"the optimizer of {moments.section} has a step count that is no number") from error
    if len(counts) > 1:
        raise UserError(f"the optimizer of {moments.section} has parameters with different step counts")
    return count


def _trainable(entries: Iterable[Entry], section: str) -> list[Entry]:
    # Frozen batch norms are buffers in PyTorch: no optimizer knows them.
    return [entry for entry in entries if entry.section == section and entry.trainable]


def import_generator_optimizer(opt_state: Any, file: Mapping[str, Any], spec: ModelSpec, iteration: int) -> Any:
    """``opt_state`` of ``optim.generator_optimizer`` with the file's moments, its schedules set to ``iteration``.

    F and C have an optimizer each in the released code: where the file has one of them alone, the other's moments stay
    as they are.
    """
    opt_state = set_schedules(opt_state, iteration)
    inner = dict(opt_state.inner_states)
    for section, masked in inner.items():
        if OPTIMIZERS[section] in file:
            moments, entries = read_moments(file, section), _trainable(generator_table(spec), section)
            inner[section] = masked._replace(inner_state=_fill(masked.inner_state, moments, entries, iteration))
    return opt_state._replace(inner_states=inner)


def import_discriminator_optimizer(opt_state: Any, file: Mapping[str, Any], params: Mapping, iteration: int) -> Any:
    """``opt_state`` of ``optim.discriminator_optimizer`` likewise; the file must have it."""
    return _fill(opt_state, read_moments(file, "model_D"), _discriminator_table_of(params), iteration)


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
                moment[slot] = _take({"params": tree}, entry)
    rate = optimizer.learning_rate * multiplier * max(0.0, 1 - iteration / optimizer.schedule_steps) ** optimizer.power
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
    table = generator_table(spec)
    return {
        OPTIMIZERS[section]: _export_chain(
            masked.inner_state,
            _trainable(table, section),
            optimizer,
            optimizer.classifier_multiplier if section == "classifier" else 1.0,
            iteration,
        )
        for section, masked in opt_state.inner_states.items()
    }


def export_discriminator_optimizer(
    opt_state: Any, params: Mapping, optimizer: OptimizerSpec, iteration: int
) -> dict[str, dict[str, Any]]:
    """The section ``optimizer_D`` likewise."""
    return {OPTIMIZERS["model_D"]: _export_chain(opt_state, _discriminator_table_of(params), optimizer, 1.0, iteration)}


def read_file(path: str | pathlib.Path) -> dict[str, Any]:
    """Contents of a ``.pth`` or ``.safetensors`` file with NumPy arrays for tensors.

    A safetensors file is flat: its keys carry the section as a prefix (``feature_extractor.backbone.conv1.weight``).
    Code inside a pickle is never run.

    Raises:
      UserError: no such file, a damaged file, one that is no dictionary of tensors, or PyTorch is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install 'fada-jax[torch]'") from error
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # Damaged files raise a dozen unrelated types.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith("Weights only load failed"):
            reason = "it is damaged or holds more than tensors, and code in a file is never run; save its state dict"
        raise UserError(f"{path} is no readable PyTorch checkpoint: {reason}") from error
    if not isinstance(contents, Mapping):
        raise UserError(f"{path} holds a {type(contents).__name__}, not a dictionary of tensors")

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            # NumPy has no bfloat16.
            return (value.float() if value.is_floating_point() and value.dtype != torch.float64 else value).numpy()
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(convert(item) for item in value)
        return value

    return convert(contents)


def read_metadata(path: str | pathlib.Path) -> dict[str, Any] | None:
    """What ``convert_weights export`` wrote about the model into a ``.safetensors`` file; None for any other file."""
    if pathlib.Path(path).suffix != ".safetensors":
        return None
    import safetensors

    with safetensors.safe_open(path, "np") as file:
        text = (file.metadata() or {}).get(METADATA)
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: what it says about its model is not JSON ({error}): export it again") from error


def _read_safetensors(path: pathlib.Path) -> dict[str, Any]:
    import safetensors
    import safetensors.numpy

    try:
        flat = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from error
    # VGG's own 'classifier.N' is no section of ours: only files with a feature extractor or a D have sections.
    if not any(key.startswith(("feature_extractor.", "model_D.")) for key in flat):
        return flat
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, rest = key.partition(".")
        if dot:
            nested.setdefault(section, {})[rest] = value
        else:
            nested[key] = value
    return nested
