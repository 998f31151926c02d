"""The schema of a config, and the one door from a ConfigDict to what the library takes.

``Config`` holds every key with its meaning, its default (the released source stage with ResNet-101) and its range.
``defaults`` gives experiments a ConfigDict to fill in, and ``read`` makes a checked ``Config`` of it. Sizes are (width,
height) in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import runpy
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ml_collections import ConfigDict
from pydantic import TypeAdapter, ValidationError

from fada_jax import classes, documents, earlier
from fada_jax.errors import UserError
from fada_jax.input_pipeline.stream import Augment, Stream
from fada_jax.methods import SYSTEMS, Method, Supervised, TrainingSpec, build
from fada_jax.methods.checks import (
    check_heads,
    check_options,
    check_recipe,
    check_sizes,
    check_stage,
    check_translation,
)
from fada_jax.methods.stages import STAGES, Part, Stage, current_name
from fada_jax.models import BACKBONES, ModelSpec, check_spec
from fada_jax.preprocessing import Preprocessing
from fada_jax.ranges import (
    Crop,
    Divisor,
    Finite,
    Half,
    NonNegative,
    Pair,
    Positive,
    Scale,
    Scales,
    Seed,
    Share,
    Size,
    Whole,
)
from fada_jax.storage import paths
from fada_jax.training.optimizers import OptimizerSpec, check_optimizers
from fada_jax.training.reduction import ReduceType
from fada_jax.training.selection import Rounds, Selection


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """One stream of images, without augmentation."""

    dataset: str = ""  # Data set under data_dir.
    split: str = ""  # Its split.
    city: str = ""  # Cross-City only: Rome, Rio, Tokyo or Taipei.
    size: Size = (8, 8)  # The whole image is resized to this: bicubic with antialiasing, labels nearest.
    # 'uniform' epochs, 'balanced' by class as released, 'rare' classes first, or 'mined' for the 3 rarest (CBST).
    sampling: str = "uniform"
    sampling_temperature: Finite = 0.01  # Of 'rare': the lower, the rarer the classes.
    flip: bool = False  # Random horizontal flips.
    scale: Scale = ()  # (low, high) of a random scale after resizing; empty: none.
    crop: Crop = ()  # Random crop after scaling, padded with black and ignored labels; empty: none.
    brightness: NonNegative = 0.0  # Colour jitter, by torchvision's definition.
    contrast: NonNegative = 0.0  # Likewise.
    saturation: NonNegative = 0.0  # Likewise.
    hue: Half = 0.0  # Likewise, in turns of the colour circle.
    # Colours change before resizing and cropping, as released. False: after both, for less time (docs/data.md).
    jitter_first: bool = True
    data_dir: str = ""  # Where the data set lies; empty: config.data_dir.

    def stream(
        self,
        *,
        labels: bool = True,
        augment: bool = True,
        pseudo_labels: str = "",
        landmarks: str = "",
        role: str = "",
    ) -> Stream:
        """What the input pipeline reads; without ``augment`` plain images in uniform order."""
        augmentation = Augment(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Augment)})
        return Stream(
            self.dataset,
            self.split,
            self.size,
            city=self.city,
            augment=augmentation if augment else Augment(),
            sampling=self.sampling if augment else "uniform",
            sampling_temperature=self.sampling_temperature if augment else 1.0,
            labels=labels and not (pseudo_labels or landmarks),
            pseudo_labels=pseudo_labels,
            data_dir=self.data_dir,
            landmarks=landmarks,
            role=role,
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work; all that these leave multiply to data parallelism."""

    fsdp: int = 1  # Devices that share each large parameter and its optimizer state; they split the batch too.
    spatial: int = 1  # Devices that share the rows of an image.


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator D."""

    widths: Pair = (256, 128)  # Hidden channels of FADA's D.
    patch_width: Positive = 64  # First hidden channels of AdaptSegNet's, see PatchDiscriminator.


@dataclasses.dataclass(frozen=True)
class KnowledgeConfig:
    """Class knowledge that a pixel gives to D."""

    temperature: Divisor = 1.8  # T, divides the logits, in L_seg too.
    clip: Share = 0.9  # Confidence clipping of soft labels (table 6).
    threshold: Share = 0.9  # Hard labels of pixels below this confidence are ignored.


# Of the discriminator, as released.
ADAM = OptimizerSpec("adam", 1e-4, 62_500, weight_decay=0.0, classifier_multiplier=1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """One stage of training."""

    data_dir: str = "data"  # Where scripts/convert_dataset.py put the TFRecords.
    damaged_records: Literal["fail", "skip"] = "fail"  # A record whose checksum differs: 'skip' says so on stderr.
    seed: Seed = 0  # Determines initialisation and every random choice of the input.
    task: str = ""  # Name of the config file.
    stage: str = "source"  # One of fada_jax/methods/stages.py.
    method: str = "fada"  # What is adapted and how, or a baseline without adaptation: of fada_jax/methods.
    size: str = "released"  # 'released' or 'miniature'.
    # 'equal': every method has FADA's network, batch, schedule and preprocessing; 'released': those of its own release.
    fidelity: Literal["equal", "released"] = "equal"
    class_set: str = "cityscapes19"  # Classes trained and scored: of fada_jax/classes.py, or a class map (.json).
    total_steps: Positive = 20_000  # Steps of the stage.
    batch_size: Positive = 8  # Global; adaptation stage: half source, half target.
    accumulate_steps: Positive = 1  # Micro-batches that a batch is worked through in, where it does not fit at once.
    reduce_dtype: ReduceType = "float32"  # Devices sum their gradients in it; 'bfloat16' sends half.
    loss_block_rows: Whole = 32  # Rows of full-resolution pixels that a loss holds at a time; 0: all.
    checkpoint_every: Positive = 2_000  # Steps between checkpoints.
    keep_checkpoints: Positive = 5  # The last ones that are kept.
    keep_every: Whole = 0  # Checkpoints at multiples of these steps are kept, too; 0: none.
    # Steps between scores on config.eval, of which the best by mIoU is kept, too; 0: never. Choosing a model by the
    # very labels that are reported flatters it: name another eval.split, or say so.
    eval_every: Whole = 0
    on_non_finite: Literal["stop", "skip"] = "stop"  # A step that makes a NaN or an infinity: 'skip' counts it.
    log_every: Positive = 50  # Steps between log lines; nothing is fetched from the device in between.
    log_images: Whole = 4  # Target images whose predictions TensorBoard shows at each checkpoint; 0: none.
    wandb: str = ""  # Project of Weights & Biases that receives the logs too; empty: none.
    init_from: str = ""  # Workdir whose weights start the stage; empty: random initialisation.
    # Self-distillation, self-training, curriculum: workdir of the model that labels the target images.
    teacher_from: str = ""
    num_devices: Whole = 0  # Devices in all; 0: every one there is.
    mesh: MeshConfig = MeshConfig()
    model: ModelSpec = ModelSpec("resnet101", 0, dtype="auto")
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    preprocessing: Preprocessing = Preprocessing()
    generator_optimizer: OptimizerSpec = OptimizerSpec()
    discriminator_optimizer: OptimizerSpec = ADAM
    lambda_adv: NonNegative = 0.001  # Weight of L_adv; 0 is the control without adaptation.
    knowledge: KnowledgeConfig = KnowledgeConfig()
    # Source images get the amplitudes of a target image up to this share of their frequencies (FDA); 0: none.
    fourier_beta: Half = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Fields of the method that no key here has.
    pseudo_labels: Selection = Selection()
    rounds: Rounds = Rounds()
    recipe: tuple[Part, ...] = ()  # Stages that run_recipe trains, of fada_jax/methods/stages.py; empty: the method's.
    student_from: str = "init_from"  # In a recipe the student starts from 'init_from', 'source' or 'adaptation'.
    source: StreamConfig = StreamConfig()  # Labelled images.
    target: StreamConfig = StreamConfig()  # Images without labels; the student trains on them with pseudo labels.
    eval: StreamConfig = StreamConfig()  # What the model is scored on, at the label's own size.
    eval_batch_size: Positive = 1  # Images on each device in evaluation.
    multi_scale: Scales = (0.7, 1.0, 1.3)  # Scales of multi-scale testing, each also flipped.

    @property
    def kind(self) -> Stage:
        """What the stage trains on."""
        return STAGES[self.stage]

    @property
    def classes(self) -> classes.ClassSet:
        """The classes of ``class_set``."""
        return classes.get_class_set(self.class_set)

    @property
    def class_map(self) -> dict[str, Any] | None:
        """The class map that ``class_set`` names; None where it names a set of ours."""
        return classes.read_class_map(self.class_set) if self.class_set.endswith(".json") else None

    @property
    def training_method(self) -> Method:
        """What the stage trains. With lambda 0 a discriminator has no effect on G, and the control leaves it out."""
        if self.kind.translates:
            sizes = {f"{name}_size": getattr(self, name).stream().image_size for name in ("source", "target")}
            return build(self.method, sizes, self.options)
        if not self.kind.adapts:
            return Supervised()
        shared = {**dataclasses.asdict(self.knowledge), "lambda_adv": self.lambda_adv}
        return build(self.training_name, shared, self.options)

    @property
    def training_name(self) -> str:
        """Name of the method that a stage which adapts trains."""
        return self.method if self.lambda_adv else "control"

    @property
    def training_spec(self) -> TrainingSpec:
        """What the method is given."""
        return TrainingSpec(
            self.model,
            self.preprocessing,
            self.generator_optimizer,
            self.discriminator_optimizer,
            self.discriminator.widths,
            self.discriminator.patch_width,
            self.accumulate_steps,
            # Where devices share the rows of an image, each holds a block of them already.
            self.loss_block_rows if self.mesh.spatial == 1 else 0,
            self.reduce_dtype,
        )

    def plain(self) -> dict[str, Any]:
        """The config in JSON types, with the keys of ``defaults``."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        del values["model"]["num_classes"]
        return values


# Keys that may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE_ON_RESUME = (
    *("checkpoint_every", "keep_checkpoints", "keep_every", "eval_every", "on_non_finite", "log_every", "data_dir"),
    *("recipe", "rounds", "damaged_records", "num_devices", "mesh", "eval_batch_size", "log_images", "wandb"),
)
Experiment: TypeAlias = ConfigDict  # What ``get_config`` of a config file returns.


def defaults() -> ConfigDict:
    """Every key with its default, to be filled in by ``configs/``."""
    values = dataclasses.asdict(Config())
    del values["model"]["num_classes"]
    return ConfigDict(values)


def read(config: ConfigDict) -> Config:
    """The checked config.

    Raises:
      UserError: naming the key, its value and what is allowed.
    """
    _same_keys(config, defaults())
    try:
        num_classes = classes.get_class_set(str(config.class_set)).num_classes
    except ValueError as error:
        raise UserError(f"config.class_set: {error}") from error
    return _checked(config.to_dict(), num_classes)


def stored(values: Mapping[str, Any], num_classes: int) -> Config:
    """The config in the metadata of a checkpoint; keys that its version did not have get the values of then.

    Args:
      values: as ``Config.plain`` gave them.
      num_classes: of the model; a class map that the config names may have moved.

    Raises:
      UserError: it does not fit this version.
    """
    values = earlier.renamed(values)
    _same_keys(values, defaults(), optional=True)
    # Earlier versions jittered last.
    old = {name: {"jitter_first": False, **values[name]} for name in earlier.STREAMS}
    return _checked(earlier.merged(defaults().to_dict(), {**values, **old}), num_classes)


def _same_keys(config: Any, wanted: Any, prefix: str = "config", *, optional: bool = False) -> None:
    """Refuses keys that the schema does not have, and lacks of them, if ``optional`` but for ``earlier.ADDED``."""
    for key in [*config, *wanted]:
        name = f"{prefix}.{documents.key_name(str(key))}"
        if name == "config.options" or (
            optional and key not in config and name.removeprefix("config.") in earlier.ADDED
        ):
            continue
        if key not in wanted:
            raise UserError(f"{name} is no key of fada_jax/config.py: correct its spelling or take it out")
        if key not in config:
            raise UserError(f"{name} is missing: start from configs/base.py")
        if isinstance(wanted[key], ConfigDict):
            if not isinstance(config[key], Mapping | ConfigDict):
                raise UserError(f"{name}={config[key]!r} must be a group of keys, as in configs/base.py")
            _same_keys(config[key], wanted[key], name, optional=optional)


def _checked(values: dict[str, Any], num_classes: int) -> Config:
    named = {key: values[key] for key in ("stage", "student_from") if isinstance(values[key], str)}
    values = {**values, **{key: current_name(name) for key, name in named.items()}}
    values["model"] = {**values["model"], "num_classes": num_classes}
    try:
        config = _schema().validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserError(documents.describe(error.errors()[0], values, "config")) from error
    for key in ("data_dir", "init_from", "teacher_from"):
        paths.check(getattr(config, key), f"config.{key}")
    for name in earlier.STREAMS:
        paths.check(getattr(config, name).data_dir, f"config.{name}.data_dir")
    _check_together(config)
    return config


@functools.cache
def _schema() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise UserError(f"config.{name}={value!r} must be one of {', '.join(allowed)}")


def _check_together(config: Config) -> None:
    """Refuses values that only others tell to be wrong."""
    _one_of("stage", config.stage, STAGES)
    _one_of("method", config.method, SYSTEMS)
    _one_of("model.backbone", config.model.backbone, BACKBONES)
    _one_of("student_from", config.student_from, ("init_from", "source", "adaptation"))
    check_spec(config.model)
    what = f"method={config.method}" if config.kind.adapts else f"stage={config.stage}"
    check_stage(config.training_name if config.kind.adapts else config.method, config.stage)
    check_heads(config.training_method, config.model.heads, what)
    if config.batch_size % config.kind.parts:
        raise UserError(f"config.batch_size={config.batch_size} must be even: half source, half target")
    if config.kind.adapts and config.lambda_adv:
        _one_of("method", config.method, [name for name, system in SYSTEMS.items() if system.adapts])
    check_options(config.method, config.options)
    check_recipe(config.recipe)
    check_sizes(
        config.training_method, {name: getattr(config, name).stream().image_size for name in earlier.STREAMS}, what
    )
    if config.fourier_beta and "target" not in config.training_method.streams:
        raise UserError(f"config.fourier_beta={config.fourier_beta}: {what} reads no target images to take them from")
    if config.eval_every % config.checkpoint_every:
        raise UserError(
            f"config.eval_every={config.eval_every} must be a multiple of config.checkpoint_every="
            f"{config.checkpoint_every}: what is scored is a checkpoint"
        )
    for name in earlier.STREAMS:
        scale = getattr(config, name).scale
        if scale and scale[0] > scale[1]:
            raise UserError(f"config.{name}.scale={scale} must be (low, high)")
    if min(config.eval.size) * min(config.multi_scale) < 8:
        raise UserError(
            f"config.multi_scale={config.multi_scale}: an image of config.eval.size={config.eval.size} would have "
            "fewer than 8 pixels a side"
        )
    if config.kind.translates:
        check_translation(config.options, config.init_from, config.eval_every)
    check_optimizers(config.generator_optimizer, config.discriminator_optimizer, config.model, config.total_steps)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as ``{"model.norm": ..., ...}``."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def load(path: str, overrides: Mapping[str, Any], **arguments: str) -> Config:
    """The checked config of a file.

    Args:
      path: of the file, with its arguments after a colon.
      overrides: by flattened key.
      **arguments: replace those of the path.

    Raises:
      UserError: an impossible value.
    """
    file, _, text = path.partition(":")
    given = dict(item.partition("=")[::2] for item in filter(None, text.split(",")))
    values = runpy.run_path(file)["get_config"](",".join(f"{k}={v}" for k, v in {**given, **arguments}.items()))
    values.update_from_flattened_dict(overrides)
    return read(values)
