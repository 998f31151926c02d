"""Which model a weight file holds, and that model without a workdir.

A ``.safetensors`` file of ``exporting.export_file`` describes its model. Of any other file the backbone, the number of
classes and the sections tell which model of the released code it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from fada_jax import classes, documents, files, stored
from fada_jax.errors import UserError
from fada_jax.evaluation.inference import MULTI_SCALE
from fada_jax.interop import lineage, safetensors_files, torch_files, torch_optimizers, torch_tables
from fada_jax.interop.entries import SECTIONS
from fada_jax.interop.tensors import check_tensors, first
from fada_jax.models import ModelSpec, Norm
from fada_jax.models.resnet import RESNETS
from fada_jax.preprocessing import CAFFE, IMAGENET, LINEAGE, Preprocessing
from fada_jax.training import checkpoints

# Layouts of files that do not describe themselves.
FORMATS = ("fada", "torchvision", "caffe_vgg", *lineage.LAYOUTS)
# The layout of names that each of them has, as ``layout_of`` calls it.
LAYOUTS = {"fada": "fada", "torchvision": "torchvision", "caffe_vgg": "torchvision"}
LAYOUTS |= dict.fromkeys(lineage.LAYOUTS, "lineage")

# Classes of a released classifier -> task, class set, and the (width, height) that the model is tested at.
_TASKS = {
    19: ("gta5_to_cityscapes", "cityscapes19", (1024, 512)),
    16: ("synthia_to_cityscapes", "synthia16", (1024, 512)),
    13: ("cityscapes_to_crosscity", "crosscity13", (1024, 512)),
    11: ("camvid_day_to_dusk", "camvid11", (480, 360)),
}


@dataclasses.dataclass(frozen=True)
class Description:
    """A model without its weights.

    Attributes:
      spec, preprocessing, class_set: as in ``checkpoints.Model``.
      config: the config that trained it; of a released model no more than what prediction needs.
      step: of the weights.
    """

    spec: ModelSpec
    preprocessing: Preprocessing
    class_set: classes.ClassSet | None
    config: dict[str, Any]
    step: int


@dataclasses.dataclass(frozen=True)
class ReleasedModel:
    """A model of the released code or of AdaptSegNet's lineage, or one that its source stage begins with.

    Attributes:
      task: name of the config file of its class set.
      stage: 'adaptation' with a discriminator, else 'source'.
      backbone: one of ``models.BACKBONES``.
      norm: 'live' or 'frozen' batch norm, or 'statistics'.
      num_classes: K.
      network: further keys of ``config.model`` that are not the released code's.
    """

    task: str
    stage: str
    backbone: str
    norm: Norm
    num_classes: int
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def describe(self, step: int) -> Description:
        """The model as it predicts after ``step`` steps, at the size and scales that the released code tests it at."""
        task, class_set, size = _TASKS[self.num_classes]
        return Description(
            ModelSpec(self.backbone, self.num_classes, self.norm, dtype="auto"),
            CAFFE if self.backbone == "vgg16" else IMAGENET,
            classes.get_class_set(class_set),
            {"task": task, "stage": self.stage, "eval": {"size": list(size)}, "multi_scale": list(MULTI_SCALE)},
            step,
        )


def norm_of(file: Mapping[str, Any]) -> Norm:
    """'live' for a released checkpoint with batch norm's counters, which frozen batch norm does not keep.

    AdaptSegNet's lineage trains with 'statistics'.
    """
    if not torch_tables.is_released(file) and lineage.is_lineage(file):
        return "statistics"
    counters = any(name.endswith("num_batches_tracked") for name in torch_tables.generator_tensors(file))
    return "live" if counters and torch_tables.is_released(file) else "frozen"


def _lineage_network(file: Mapping[str, Any], format: str) -> dict[str, Any]:
    """What ``config.model`` says of a network of AdaptSegNet's lineage.

    Raises:
      UserError: nobody says how many branches of a head take part.
    """
    if lineage.is_initial(file):
        return {"variant": "caffe", "active_rates": lineage.LAYOUTS.get(format, 0)}
    if format not in lineage.LAYOUTS:
        raise UserError(
            "say --format=adaptsegnet (2 of the 4 branches of a head take part) or --format=advent (all do, as in "
            "CLAN), or name a --config that does: the file does not tell"
        )
    heads = lineage.heads_in(file)
    network = {"variant": "caffe", "active_rates": lineage.LAYOUTS[format]}
    return network if heads == "one" else {**network, "heads": heads}


def released_model(file: Mapping[str, Any], path: str | Path, format: str = "") -> ReleasedModel:
    """The model that a file of the released, of torchvision's or of AdaptSegNet's layout holds.

    Args:
      file: contents of ``path``.
      path: for errors.
      format: one of ``FORMATS``, or '' where nobody says.

    Raises:
      UserError: a backbone or class count that the released code does not have; it names ``path``.
    """
    tensors = torch_tables.generator_tensors(file)
    backbones: dict[tuple[str, tuple[int, ...]], str] = {sizes: backbone for backbone, sizes in RESNETS.items()}
    block, counts = torch_tables.residual_blocks(tensors)
    backbone = backbones.get((block, counts))
    if not counts and "feature_extractor.backbone.0.weight" in tensors:
        backbone = "vgg16"
    if not backbone:
        raise UserError(f"{path} holds no ResNet-18, -34, -50, -101 or VGG-16 that is known here")
    bias = tensors.get("classifier.conv2d_list.0.bias")
    if bias is not None and np.ndim(bias) != 1:
        raise UserError(f"{path}: classifier.conv2d_list.0.bias is no vector")
    num_classes = len(bias) if bias is not None else 19
    if num_classes not in _TASKS:
        raise UserError(f"{path}: its classifier has {num_classes} classes, known are {', '.join(map(str, _TASKS))}")
    stage = "adaptation" if "model_D" in file else "source"
    network: dict[str, Any] = {}
    if layout_of(file) == "lineage":
        network = _lineage_network(file, format)
    return ReleasedModel(_TASKS[num_classes][0], stage, backbone, norm_of(file), num_classes, network)


def told(file: Mapping[str, Any], wanted: ModelSpec, format: str) -> list[tuple[str, Any, Any]]:
    """What the layout of a file says about its network where no shape would: config key, its value and ``wanted``'s."""
    foreign = layout_of(file) == "lineage"
    pairs: list[tuple[str, Any, Any]] = [("model.variant", "caffe" if foreign else "torchvision", wanted.variant)]
    if torch_tables.is_released(file) or (format in lineage.LAYOUTS and not lineage.is_initial(file)):
        active = lineage.LAYOUTS.get(format, 0) or len(wanted.aspp_rates)
        pairs.append(("model.active_rates", active, wanted.active_branches))
    return pairs


def layout_of(file: Mapping[str, Any]) -> str:
    """Layout of a file that does not describe itself: 'fada', 'lineage' or 'torchvision'."""
    if torch_tables.is_released(file):
        return "fada"
    return "lineage" if lineage.is_lineage(file) else "torchvision"


def preprocessing_of(file: Mapping[str, Any], backbone: str, path: str | Path, format: str = "") -> Preprocessing:
    """The preprocessing that weights of a file belong to.

    Args:
      file: contents of ``path``.
      backbone: of its model.
      format: one of ``FORMATS``, or '' where nobody says.

    Raises:
      UserError: the file does not tell, or ``format`` contradicts it.
    """
    if layout_of(file) == "lineage":
        return LINEAGE
    vgg = backbone == "vgg16"
    if format == "caffe_vgg" and not vgg:
        raise UserError(f"{path} holds {backbone}, not a VGG-16")
    if vgg and not format and not torch_tables.is_released(file):
        raise UserError(f"{path}: say --format=torchvision (RGB, 0-1) or --format=caffe_vgg (BGR, 0-255)")
    return CAFFE if vgg and format != "torchvision" else IMAGENET


def read_description(path: str | Path) -> Description | None:
    """The description in a file; None where it is not of ``exporting.export_file``.

    Raises:
      UserError: it cannot be understood.
    """
    if files.place(path).suffix != ".safetensors":
        return None
    with files.local_copy(path) as copy:
        header = safetensors_files.header(copy)
    text = header.metadata.get(safetensors_files.METADATA)
    if not text:
        return None
    source = f"{path}: its metadata"
    meta = stored.meta(documents.parse(text, source), source)
    if meta.checkpoint_step is None:
        raise UserError(f"{source}: checkpoint_step is missing: export it again")
    _check_sizes(meta.model, header, source)
    return Description(meta.model, meta.preprocessing, meta.class_set, meta.config, meta.checkpoint_step)


def _check_sizes(spec: ModelSpec, header: safetensors_files.Header, source: str) -> None:
    """Refuses a model that the file cannot hold, before the shapes of so large a one are worked out."""
    numbers = sum(math.prod(entry.shape) for entry in header.tensors.values())
    for field, size, limit in (
        ("stage_sizes", sum(spec.stage_sizes), len(header.tensors)),
        ("aspp_rates", len(spec.aspp_rates), len(header.tensors)),
        ("widths", sum(spec.widths), numbers),
        ("stem_width", spec.stem_width, numbers),
        ("num_classes", spec.num_classes, numbers),
    ):
        if size > limit:
            value = documents.shown(getattr(spec, field))
            raise UserError(f"{source}: model.{field}={value} is larger than all tensors of the file: export it again")
    checkpoints.generator_shapes(spec, f"{source}: model")


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Lets errors about the contents of a file begin with its path."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error


def is_own(file: Mapping[str, Any]) -> bool:
    """Whether a file holds our own names: a model that the released layout cannot hold, such as one of group norm."""
    return any(str(key).startswith("params.") for key in file)


def has_classifier(file: Mapping[str, Any]) -> bool:
    """Whether a file holds all of G, and not an ImageNet model."""
    return is_own(file) or torch_tables.has_classifier(file)


def check_names(file: Mapping[str, Any], described: Description | None) -> None:
    """Refuses a file of ``exporting.export_file`` that has lost its description or the names of its tensors.

    Raises:
      UserError: one of the two is missing.
    """
    if is_own(file) and not described:
        raise UserError("it does not say which model it holds: export it again")
    if not described:
        return
    own = not torch_tables.fits_released(described.spec)
    known = ("params.", "batch_stats.") if own else SECTIONS
    foreign = [name for name in file if not (str(name).startswith(known) if own else name in known)]
    if foreign:
        raise UserError(f"its tensors do not have the names that export gives them ({first(foreign)}): export it again")
    if not has_classifier(file):
        raise UserError("it holds no tensor of the model that it describes: export it again")


def import_generator(
    file: Mapping[str, Any], spec: ModelSpec, initial: Mapping[str, Any] | None = None
) -> tuple[Any, Any, torch_tables.Report]:
    """Parameters, batch statistics and report of G, whatever the layout; ``torch_tables.import_generator``.

    Raises:
      UserError: a tensor that is missing, unknown, of another shape, not floating-point or not finite.
    """
    if not is_own(file):
        return torch_tables.import_generator(file, spec, initial)
    state = checkpoints.generator_shapes(spec, "its model")
    arrays = {"params": state.params, "batch_stats": state.collections.get("batch_stats", {})}
    flat = traverse_util.flatten_dict(arrays, sep=".")
    check_tensors(file, {name: x.shape for name, x in flat.items()})
    tree = traverse_util.unflatten_dict({name: np.asarray(file[name], x.dtype) for name, x in flat.items()}, sep=".")
    return tree["params"], tree.get("batch_stats", {}), torch_tables.Report(used=tuple(file))


def read_model(path: str | Path) -> checkpoints.Model:
    """The segmenter in a file of the released code or of ``exporting.export_file``, without a workdir.

    Raises:
      UserError: no such file, no trained classifier in it, or anything unexplained.
    """
    file, described = torch_files.read_file(path), read_description(path)
    with naming(path):
        check_names(file, described)
        if not described and layout_of(file) == "lineage":
            raise UserError("import it first: python -m fada_jax.convert_weights import")
        step = torch_optimizers.read_iteration(file)
        if not described and torch_tables.is_released(file):
            described = released_model(file, path).describe(step or 0)
        if not described or not described.class_set:
            raise UserError(f"{path} holds a feature extractor alone: import it and train a classifier first")
        params, batch_stats, _ = import_generator(file, described.spec)
    return checkpoints.Model(params=params, batch_stats=batch_stats, **vars(described))
