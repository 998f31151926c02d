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
from fada_jax.interop import lineage
from fada_jax.interop.entries import (
    CLASSIFIER,
    DISCRIMINATOR,
    FEATURE_EXTRACTOR,
    SECTIONS,
    Entry,
    Report,
    convolution,
    state_dict,
    to_tensor,
    to_variables,
)
from fada_jax.interop.tensors import check_tensors
from fada_jax.models import ModelSpec
from fada_jax.models.resnet import ResNet, convolutions
from fada_jax.models.segmenter import feature_extractor
from fada_jax.models.vgg import BLOCKS, VGG16

_VGG_POOL4 = 23


def _norm(key: str, path: Sequence[str], channels: int, norm: str) -> Iterator[Entry]:
    affine = "params" if norm == "live" else "batch_stats"
    for torch_name, collection, name in (
        ("weight", affine, "scale"),
        ("bias", affine, "bias"),
        ("running_mean", "batch_stats", "mean"),
        ("running_var", "batch_stats", "var"),
    ):
        yield Entry(FEATURE_EXTRACTOR, f"{key}.{torch_name}", (collection, *path, name), (channels,))


def _resnet(net: ResNet) -> Iterator[Entry]:
    top, inputs = FEATURE_EXTRACTOR, net.stem_width
    yield from convolution(top, "backbone.conv1", (top, "conv1"), inputs, 3, 7, False)
    yield from _norm("backbone.bn1", (top, "bn1"), inputs, net.norm)
    for number, stage in enumerate(net.stages(), start=1):
        plan = convolutions(net.block, stage.width)
        outputs = plan[-1][0]
        for block in range(stage.blocks):
            key, path = f"backbone.layer{number}.{block}", (top, f"layer{number}_{block}")
            channels = inputs
            for i, (features, kernel) in enumerate(plan, start=1):
                yield from convolution(top, f"{key}.conv{i}", (*path, f"conv{i}"), features, channels, kernel, False)
                yield from _norm(f"{key}.bn{i}", (*path, f"bn{i}"), features, net.norm)
                channels = features
            if stage.project and block == 0:
                yield from convolution(
                    top, f"{key}.downsample.0", (*path, "downsample_conv"), outputs, inputs, 1, False
                )
                yield from _norm(f"{key}.downsample.1", (*path, "downsample_bn"), outputs, net.norm)
            inputs = outputs


def _vgg(net: VGG16) -> Iterator[Entry]:
    top, index, inputs = FEATURE_EXTRACTOR, 0, 3
    for block, ((convs, pool), width) in enumerate(zip(BLOCKS, net.widths, strict=True), start=1):
        for i in range(1, convs + 1):
            yield from convolution(top, f"backbone.{index}", (top, f"conv{block}_{i}"), width, inputs, 3, True)
            index, inputs = index + 2, width  # A ReLU follows each convolution.
        index += pool
    for name in ("fc6", "fc7"):
        yield from convolution(top, f"backbone.{index}", (top, name), net.fc_width, inputs, 3, True)
        index, inputs = index + 2, net.fc_width


def fits_released(spec: ModelSpec) -> bool:
    """Whether the released code has this network: else its layout would say something else than the model computes."""
    all_take_part = spec.active_branches == len(spec.aspp_rates)
    plain = spec.variant == "torchvision" and spec.heads == "one" and all_take_part
    return plain and spec.norm != "group"


def generator_table(spec: ModelSpec) -> tuple[Entry, ...]:
    """Every tensor of F and C, in the order of PyTorch's ``state_dict()`` and so of ``parameters()``.

    Of several classifiers each is a section under its own name.

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
    last = entries[-1].shape[0]
    for head in lineage.HEADS[spec.heads].values():
        features = _third_stage(net) if head == "auxiliary_classifier" else last
        for i in range(len(spec.aspp_rates)):
            key, path = f"conv2d_list.{i}", (head, f"conv{i}")
            entries += convolution(head, key, path, spec.num_classes, features, 3, True)
    return tuple(entries)


def _third_stage(net: Any) -> int:
    """Channels after layer3 of a ResNet."""
    return convolutions(net.block, net.widths[2])[-1][0]


def discriminator_table(num_outputs: int, features: int, widths: Sequence[int] = (256, 128)) -> tuple[Entry, ...]:
    """Every tensor of D; its two heads are the halves of our one."""
    entries = [
        *convolution(DISCRIMINATOR, "D.0", ("conv0",), widths[0], features, 3, True),
        *convolution(DISCRIMINATOR, "D.2", ("conv1",), widths[1], widths[0], 3, True),
    ]
    half = num_outputs // 2
    for key, part in (("cls1", (0, half)), ("cls2", (half, num_outputs))):
        head = convolution(DISCRIMINATOR, key, ("head",), half, widths[1], 3, True)
        entries += [dataclasses.replace(entry, part=part) for entry in head]
    return tuple(entries)


def discriminator_sizes(params: Mapping) -> tuple[int, int, tuple[int, int]]:
    """Outputs, input channels and widths of D, read off its parameters or their shapes."""
    shapes = [np.shape(params[name]["kernel"]) for name in ("conv0", "conv1", "head")]
    return shapes[2][-1], shapes[0][2], (shapes[0][3], shapes[1][3])


def discriminator_table_of(params: Mapping) -> tuple[Entry, ...]:
    """The table of the D that has these parameters: FADA's, or one of patches."""
    if lineage.is_patch_discriminator(params):
        return lineage.patch_discriminator_table(params)
    return discriminator_table(*discriminator_sizes(params))


def is_released(file: Mapping[str, Any]) -> bool:
    """Whether ``file`` is a checkpoint of the released code (else: the plain state dict of an ImageNet model)."""
    return any(section in file for section in SECTIONS)


def has_classifier(file: Mapping[str, Any]) -> bool:
    """Whether ``file`` holds all of G, and not a model to begin with."""
    return is_released(file) or (lineage.is_lineage(file) and not lineage.is_initial(file))


def generator_tensors(file: Mapping[str, Any], heads: str = "") -> dict[str, np.ndarray]:
    """All tensors meant for F and C under the names ``section.key`` of the released code.

    ImageNet models keep what has no place here (``fc``, VGG's ``classifier``) under their own names.

    Args:
      file: contents of a file.
      heads: of the model that takes them, for files of AdaptSegNet's lineage; '': read off the file.

    Raises:
      UserError: a section that is no dictionary, or a name that stands for two tensors.
    """
    if is_released(file):
        sections = {name: state_dict(file.get(name, {}), name) for name in (FEATURE_EXTRACTOR, CLASSIFIER)}
        return {f"{section}.{key}": value for section, tensors in sections.items() for key, value in tensors.items()}
    plain = state_dict(file.get("state_dict", file), "state_dict")
    if lineage.is_lineage(file):
        return lineage.section_names(plain, initial=lineage.is_initial(file), heads=heads)
    renamed = {}
    for key, value in plain.items():
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
      file: a released checkpoint (sections), or the state dict of an ImageNet model or of AdaptSegNet's lineage, as
        ``torch_files.read_file`` returns it.
      spec: the model to fill.
      initial: freshly initialised variables (``params`` and ``batch_stats``), from which an ImageNet model takes what
        it lacks: the classifier, and VGG's fc6 and fc7.

    Returns:
      ``params``, ``batch_stats`` (empty for VGG), and what became of every tensor.

    Raises:
      UserError: another backbone or class count, or a tensor that is missing, unknown or of the wrong shape.
    """
    check_backbone(file, spec)
    table, tensors = generator_table(spec), generator_tensors(file, spec.heads)
    dropped = [name for name in tensors if name.endswith(".num_batches_tracked")]
    fresh: dict[str, np.ndarray] = {}
    if not has_classifier(file):
        dropped += [name for name in tensors if name.startswith(("fc.", "classifier.", "layer5."))]
        if initial is not None:
            new = [e for e in table if e.section != FEATURE_EXTRACTOR or e.path[-2] in ("fc6", "fc7")]
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

    Further classifiers are sections under their own names.

    Args:
      num_batches_tracked: training batches seen so far; PyTorch's batch norm stores it beside each average.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    sections: dict[str, dict[str, np.ndarray]] = {FEATURE_EXTRACTOR: {}, CLASSIFIER: {}}
    for entry in generator_table(spec):
        sections.setdefault(entry.section, {})[entry.key] = to_tensor(entry, variables)
        if spec.norm != "frozen" and entry.key.endswith(".running_var"):
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
    return _discriminator(file[DISCRIMINATOR], discriminator_table(num_outputs, features, widths), DISCRIMINATOR)


def _discriminator(tensors: Any, table: Sequence[Entry], section: str) -> tuple[dict, Report]:
    plain = state_dict(tensors, section)
    variables, report = _assemble(table, {f"{section}.{key}": value for key, value in plain.items()}, (), {})
    return variables["params"], report


def import_discriminator_like(tensors: Any, params: Mapping, section: str) -> tuple[dict, Report]:
    """Parameters of a discriminator from its state dict, and what became of every tensor.

    Args:
      tensors: the state dict.
      params: parameters of the discriminator that takes them, or their shapes.
      section: that ``tensors`` stand for.

    Raises:
      UserError: a tensor that is missing, unknown or of the wrong shape.
    """
    if lineage.is_patch_discriminator(params):
        tensors = lineage.patch_names(state_dict(tensors, section))
        return _discriminator(tensors, lineage.patch_discriminator_table(params, section), section)
    return _discriminator(tensors, discriminator_table_of(params), section)


def export_discriminator(params: Mapping) -> dict[str, np.ndarray]:
    """The state dict of a discriminator, the section ``model_D`` of a released checkpoint."""
    return {entry.key: to_tensor(entry, {"params": params}) for entry in discriminator_table_of(params)}
