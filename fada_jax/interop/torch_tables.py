"""The released code's tensors of F, C and D beside our arrays: names, shapes and layouts, both ways.

Every correspondence comes from one table, ``generator_table`` or ``discriminator_table``: a tensor of the released
code, where it lives in our variables, and its shape. Convolutions change from OIHW to HWIO; vectors stay as they are.

The released VGG is torchvision's ``features`` as one ``nn.Sequential`` without pool4 (index 23) and pool5 (index 30),
followed by fc6, ReLU, fc7, ReLU: conv5 has the indices 23, 25, 27, fc6 is 29 and fc7 is 31.

A tensor that is missing, unknown, of another shape or not finite is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fada_jax.errors import UserError
from fada_jax.interop.tensors import check_tensors, printable
from fada_jax.models import ModelSpec
from fada_jax.models.resnet import ResNet, convolutions
from fada_jax.models.segmenter import feature_extractor
from fada_jax.models.vgg import BLOCKS, VGG16

# State dicts of a released checkpoint.
FEATURE_EXTRACTOR, CLASSIFIER, DISCRIMINATOR = SECTIONS = ("feature_extractor", "classifier", "model_D")

_VGG_POOL4 = 23


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the released code.

    Attributes:
      section: state dict that holds it, one of ``SECTIONS``.
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
    """Names of tensors that were read from the file, left in the file, or kept from random initialisation."""

    used: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.used + other.used, self.dropped + other.dropped, self.initialised + other.initialised)


def _conv(
    section: str, key: str, path: Sequence[str], outputs: int, inputs: int, kernel: int, bias: bool
) -> Iterator[Entry]:
    yield Entry(section, f"{key}.weight", ("params", *path, "kernel"), (outputs, inputs, kernel, kernel))
    if bias:
        yield Entry(section, f"{key}.bias", ("params", *path, "bias"), (outputs,))


def _norm(key: str, path: Sequence[str], channels: int, norm: str) -> Iterator[Entry]:
    affine = "batch_stats" if norm == "frozen" else "params"
    for torch_name, collection, name in (
        ("weight", affine, "scale"),
        ("bias", affine, "bias"),
        ("running_mean", "batch_stats", "mean"),
        ("running_var", "batch_stats", "var"),
    ):
        yield Entry(FEATURE_EXTRACTOR, f"{key}.{torch_name}", (collection, *path, name), (channels,))


def _resnet(net: ResNet) -> Iterator[Entry]:
    top, inputs = FEATURE_EXTRACTOR, net.stem_width
    yield from _conv(top, "backbone.conv1", (top, "conv1"), inputs, 3, 7, False)
    yield from _norm("backbone.bn1", (top, "bn1"), inputs, net.norm)
    for number, stage in enumerate(net.stages(), start=1):
        plan = convolutions(net.block, stage.width)
        outputs = plan[-1][0]
        for block in range(stage.blocks):
            key, path = f"backbone.layer{number}.{block}", (top, f"layer{number}_{block}")
            channels = inputs
            for i, (features, kernel) in enumerate(plan, start=1):
                yield from _conv(top, f"{key}.conv{i}", (*path, f"conv{i}"), features, channels, kernel, False)
                yield from _norm(f"{key}.bn{i}", (*path, f"bn{i}"), features, net.norm)
                channels = features
            if stage.project and block == 0:
                yield from _conv(top, f"{key}.downsample.0", (*path, "downsample_conv"), outputs, inputs, 1, False)
                yield from _norm(f"{key}.downsample.1", (*path, "downsample_bn"), outputs, net.norm)
            inputs = outputs


def _vgg(net: VGG16) -> Iterator[Entry]:
    top, index, inputs = FEATURE_EXTRACTOR, 0, 3
    for block, ((convs, pool), width) in enumerate(zip(BLOCKS, net.widths, strict=True), start=1):
        for i in range(1, convs + 1):
            yield from _conv(top, f"backbone.{index}", (top, f"conv{block}_{i}"), width, inputs, 3, True)
            index, inputs = index + 2, width  # A ReLU follows each convolution.
        index += pool
    for name in ("fc6", "fc7"):
        yield from _conv(top, f"backbone.{index}", (top, name), net.fc_width, inputs, 3, True)
        index, inputs = index + 2, net.fc_width


def generator_table(spec: ModelSpec) -> tuple[Entry, ...]:
    """Every tensor of F and C, in the order of PyTorch's ``state_dict()`` and so of ``parameters()``.

    Raises:
      UserError: the model has a normalisation that the released code does not know.
    """
    net = feature_extractor(spec)
    if isinstance(net, ResNet):
        if spec.norm == "group":
            raise UserError("a model with norm 'group' has no PyTorch counterpart: use norm 'frozen' or 'live'")
        entries = list(_resnet(net))
    elif isinstance(net, VGG16):
        entries = list(_vgg(net))
    else:
        raise TypeError(f"{type(net).__name__} has no PyTorch counterpart")
    features = entries[-1].shape[0]
    for i in range(len(spec.aspp_rates)):
        path = (CLASSIFIER, f"conv{i}")
        entries += _conv(CLASSIFIER, f"conv2d_list.{i}", path, spec.num_classes, features, 3, True)
    return tuple(entries)


def discriminator_table(num_outputs: int, features: int, widths: Sequence[int] = (256, 128)) -> tuple[Entry, ...]:
    """Every tensor of D; its two heads are the halves of our one."""
    entries = [
        *_conv(DISCRIMINATOR, "D.0", ("conv0",), widths[0], features, 3, True),
        *_conv(DISCRIMINATOR, "D.2", ("conv1",), widths[1], widths[0], 3, True),
    ]
    half = num_outputs // 2
    for key, part in (("cls1", (0, half)), ("cls2", (half, num_outputs))):
        head = _conv(DISCRIMINATOR, key, ("head",), half, widths[1], 3, True)
        entries += [dataclasses.replace(entry, part=part) for entry in head]
    return tuple(entries)


def discriminator_sizes(params: Mapping) -> tuple[int, int, tuple[int, int]]:
    """Outputs, input channels and widths of D, read off its parameters or their shapes."""
    shapes = [np.shape(params[name]["kernel"]) for name in ("conv0", "conv1", "head")]
    return shapes[2][-1], shapes[0][2], (shapes[0][3], shapes[1][3])


def discriminator_table_of(params: Mapping) -> tuple[Entry, ...]:
    """``discriminator_table`` of the D that has these parameters."""
    return discriminator_table(*discriminator_sizes(params))


def from_torch(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours: OIHW to HWIO, vectors as they are; float32."""
    array = np.asarray(tensor, np.float32)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def to_torch(array: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's: HWIO to OIHW, vectors as they are."""
    array = np.asarray(array)
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def to_variables(entries: Iterable[Entry], tensors: Mapping[str, np.ndarray]) -> dict:
    """Nested variables from tensors by name; the parts of one array are joined along its outputs."""
    variables: dict = {}
    for entry in entries:
        node = variables
        for name in entry.path[:-1]:
            node = node.setdefault(name, {})
        parts = [node[entry.path[-1]]] if entry.part and entry.part[0] else []
        node[entry.path[-1]] = np.concatenate([*parts, from_torch(tensors[entry.name])], axis=-1)
    return variables


def to_tensor(entry: Entry, variables: Mapping) -> np.ndarray:
    """The tensor of ``entry`` in PyTorch's layout."""
    node: Any = variables
    for name in entry.path:
        node = node[name]
    array = np.asarray(node)
    return to_torch(array if entry.part is None else array[..., slice(*entry.part)])


def _state_dict(tensors: Any, name: str) -> dict[str, Any]:
    """The state dict ``name`` without the prefix that training on several GPUs adds."""
    if not isinstance(tensors, Mapping):
        raise UserError(f"{name} is no state dict")
    plain = {printable(key).removeprefix("module."): value for key, value in tensors.items()}
    if len(plain) < len(tensors):
        raise UserError(f"{name} holds one tensor under two names, with and without 'module.' before it")
    return plain


def is_released(file: Mapping[str, Any]) -> bool:
    """Whether ``file`` is a checkpoint of the released code (else: the plain state dict of an ImageNet model)."""
    return any(section in file for section in SECTIONS)


def generator_tensors(file: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All tensors meant for F and C under the names ``section.key`` of the released code.

    ImageNet models keep what has no place here (``fc``, VGG's ``classifier``) under their own names.

    Raises:
      UserError: a section that is no dictionary, or a name that stands for two tensors.
    """
    if is_released(file):
        sections = {name: _state_dict(file.get(name, {}), name) for name in (FEATURE_EXTRACTOR, CLASSIFIER)}
        return {f"{section}.{key}": value for section, tensors in sections.items() for key, value in tensors.items()}
    renamed = {}
    for key, value in _state_dict(file.get("state_dict", file), "state_dict").items():
        if match := re.fullmatch(r"features\.(\d{1,4})\.(\w+)", key):
            index = int(match[1])
            key = f"{FEATURE_EXTRACTOR}.backbone.{index - (index > _VGG_POOL4)}.{match[2]}"
        elif not key.startswith(("fc.", "classifier.")):
            key = f"{FEATURE_EXTRACTOR}.backbone.{key}"
        if key in renamed:
            raise UserError(f"the file holds {key} twice")
        renamed[key] = value
    return renamed


def residual_blocks(names: Iterable[str]) -> tuple[str, tuple[int, ...]]:
    """Block ('basic' or 'bottleneck') and blocks per stage of the ResNet with tensors of these names; () if none."""
    matches = [m for m in (re.search(r"backbone\.layer(\d+)\.(\d+)\.conv(\d)", name) for name in names) if m]
    stages = sorted({match[1] for match in matches})
    counts = tuple(len({match[2] for match in matches if match[1] == stage}) for stage in stages)
    return "bottleneck" if any(match[3] == "3" for match in matches) else "basic", counts


def _architecture(names: Iterable[str]) -> str:
    """The kind of backbone with tensors of these names, for people."""
    names = list(names)
    block, counts = residual_blocks(names)
    if counts:
        return f"a ResNet of {'-'.join(map(str, counts))} {block} blocks"
    if any(re.search(r"backbone\.\d+\.weight", name) for name in names):
        return "a VGG-16"
    return "no known backbone"


def check_backbone(file: Mapping[str, Any], spec: ModelSpec) -> None:
    """Refuses a file whose backbone is another than the model's.

    Raises:
      UserError: naming both.
    """
    in_file = _architecture(generator_tensors(file))
    needed = _architecture(entry.name for entry in generator_table(spec))
    if in_file != needed:
        raise UserError(f"the file holds {in_file}, the model {spec.backbone} is {needed}")


def _assemble(
    entries: Sequence[Entry], tensors: Mapping[str, Any], dropped: Sequence[str], initial: Mapping[str, np.ndarray]
) -> tuple[dict, Report]:
    """Variables from ``tensors``, and from ``initial`` where a tensor is missing; everything is accounted for."""
    values = {**initial, **{name: value for name, value in tensors.items() if name not in dropped}}
    check_tensors(values, {entry.name: entry.shape for entry in entries})
    used = tuple(entry.name for entry in entries if entry.name in tensors)
    initialised = tuple(entry.name for entry in entries if entry.name not in tensors)
    return to_variables(entries, values), Report(used, tuple(name for name in tensors if name in dropped), initialised)


def import_generator(
    file: Mapping[str, Any], spec: ModelSpec, initial: Mapping[str, Any] | None = None
) -> tuple[dict, dict, Report]:
    """Parameters and batch statistics of G.

    Args:
      file: a released checkpoint (sections) or the state dict of an ImageNet model, as ``torch_files.read_file``
        returns it.
      spec: the model to fill.
      initial: freshly initialised variables (``params`` and ``batch_stats``), from which an ImageNet model takes what
        it lacks: the classifier, and VGG's fc6 and fc7.

    Returns:
      ``params``, ``batch_stats`` (empty for VGG), and what became of every tensor.

    Raises:
      UserError: another backbone or class count, or a tensor that is missing, unknown or of the wrong shape.
    """
    check_backbone(file, spec)
    table, tensors = generator_table(spec), generator_tensors(file)
    dropped = [name for name in tensors if name.endswith(".num_batches_tracked")]
    fresh: dict[str, np.ndarray] = {}
    if not is_released(file):
        dropped += [name for name in tensors if name.startswith(("fc.", "classifier."))]
        if initial is not None:
            new = [e for e in table if e.section == CLASSIFIER or e.path[-2] in ("fc6", "fc7")]
            fresh = {entry.name: to_tensor(entry, initial) for entry in new}
    variables, report = _assemble(table, tensors, dropped, fresh)
    if spec.norm == "frozen":
        for entry in table:
            if entry.path[-1] == "var" and not tensors[entry.name].all():
                raise UserError(f"{entry.name} holds a variance of 0, which frozen batch norm divides by")
    return variables["params"], variables.get("batch_stats", {}), report


def export_generator(
    params: Mapping, batch_stats: Mapping, spec: ModelSpec, num_batches_tracked: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """The sections ``feature_extractor`` and ``classifier`` of a released checkpoint; inverse of ``import_generator``.

    Args:
      num_batches_tracked: training batches seen so far; PyTorch's live batch norm stores it beside each average.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    sections: dict[str, dict[str, np.ndarray]] = {FEATURE_EXTRACTOR: {}, CLASSIFIER: {}}
    for entry in generator_table(spec):
        sections[entry.section][entry.key] = to_tensor(entry, variables)
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
    if DISCRIMINATOR not in file:
        raise UserError("the file has no section model_D: it is not of the adversarial stage")
    state_dict = _state_dict(file[DISCRIMINATOR], DISCRIMINATOR)
    tensors = {f"{DISCRIMINATOR}.{key}": value for key, value in state_dict.items()}
    variables, report = _assemble(discriminator_table(num_outputs, features, widths), tensors, (), {})
    return variables["params"], report


def export_discriminator(params: Mapping) -> dict[str, np.ndarray]:
    """The section ``model_D`` of a released checkpoint."""
    return {entry.key: to_tensor(entry, {"params": params}) for entry in discriminator_table_of(params)}
