"""What the task files share: arguments, the released settings of each stage, and the miniature size.

Arguments after the colon of ``--config=configs/TASK.py:key=value,...`` choose a variant; ``--config.key=value`` then
overrides any single key. Every key is documented in ``fada_jax/config.py``. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from fada_jax import preprocessing
from fada_jax.config import StreamConfig, defaults
from fada_jax.methods import SYSTEMS, options_of
from fada_jax.methods.stages import STAGES, current_name
from fada_jax.models import BACKBONES

SIZES = ("released", "miniature")
FIDELITIES = ("equal", "released")
ARGUMENTS = {"stage": "source", "method": "fada", "backbone": "resnet101", "size": "released", "fidelity": "equal"}
VALUES = {
    "stage": tuple(STAGES),
    "method": tuple(SYSTEMS),
    "backbone": tuple(BACKBONES),
    "size": SIZES,
    "fidelity": FIDELITIES,
}
# Of their papers and releases, where it is not FADA's 0.001.
OWN_LAMBDA = {
    **{"control": 0.0, "adaptpatch": 5e-4, "fda": 0.005, "maxsquare": 0.1, "cycada": 0.1},
    **dict.fromkeys(("st", "cbst", "crst", "cda"), 1.0),
}
RELEASED_HERE = ("fada", "source_only", "control", "oracle")  # FADA's release, which the defaults follow.
# Releases of AdaptSegNet's lineage: steps, steps of their poly decay, and ASPP branches that take part (0: all).
LINEAGE = {
    "feature_space": (150_000, 250_000, 2),
    "adaptsegnet": (150_000, 250_000, 2),
    "adaptsegnet_multi": (150_000, 250_000, 2),
    "clan": (100_000, 100_000, 0),
    "minent": (120_000, 250_000, 0),
    "advent": (120_000, 250_000, 0),
}


def parse(text: str, **own: str) -> ConfigDict:
    """Config arguments ``key=value,key=value`` over the defaults; ``own`` are a task's further ones.

    Raises:
      ValueError: an argument or a value that does not exist.
    """
    arguments, given = {**ARGUMENTS, **own}, set()
    for item in filter(None, (text or "").split(",")):
        key, separator, value = item.partition("=")
        if not separator or key not in arguments:
            raise ValueError(f"config argument {item!r}: expected key=value with a key of {', '.join(arguments)}")
        arguments[key] = value
        given.add(key)
    arguments["stage"] = current_name(arguments["stage"])
    for key, allowed in VALUES.items():
        if arguments[key] not in allowed:
            raise ValueError(f"config argument {key}={arguments[key]!r}: one of {', '.join(allowed)}")
    _pair_translation(arguments, given)
    if arguments["fidelity"] == "released":
        _check_release(arguments)
    return ConfigDict(arguments)


def _pair_translation(arguments: dict[str, str], given: set[str]) -> None:
    """Of a translation stage and its method either names the other."""
    if STAGES[arguments["stage"]].translates and "method" not in given:
        arguments["method"] = next(name for name, system in SYSTEMS.items() if system.translates)
    elif SYSTEMS[arguments["method"]].translates and "stage" not in given:
        arguments["stage"] = next(name for name, stage in STAGES.items() if stage.translates)


def stream(dataset: str = "", split: str = "", size: tuple[int, int] = (0, 0), city: str = "") -> ConfigDict:
    """One stream of images, without augmentation."""
    return ConfigDict(dataclasses.asdict(StreamConfig(dataset, split, city, size)))


def get_config(arguments: ConfigDict) -> ConfigDict:
    """The released settings of a stage, with empty streams."""
    config = defaults()
    config.stage, config.method, config.size = arguments.stage, arguments.method, arguments.size
    config.options = ConfigDict(options_of(arguments.method))
    config.model.backbone = arguments.backbone
    vgg = arguments.backbone == "vgg16"
    if STAGES[arguments.stage].translates:
        _as_cyclegan(config)
    if vgg:  # Its weights are Caffe's.
        config.preprocessing.update(dataclasses.asdict(preprocessing.CAFFE))
    if arguments.stage == "self_distillation" and not vgg:
        config.model.norm = "live"
    if STAGES[arguments.stage].adapts:
        config.total_steps = 40_000
        config.generator_optimizer.update(learning_rate=2.5e-4, schedule_steps=62_500)
        config.model.heads = SYSTEMS[arguments.method].heads
    if arguments.stage == "self_training":
        _as_rounds(config)
    config.lambda_adv = OWN_LAMBDA.get(arguments.method, config.lambda_adv)
    if arguments.method == "fda" and STAGES[arguments.stage].adapts:
        config.fourier_beta = 0.01
    config.fidelity = arguments.fidelity
    if arguments.fidelity == "released" and arguments.method in LINEAGE:
        _as_lineage(config)
    return config


def _as_rounds(config: ConfigDict) -> None:
    """Rounds that are together as long as an adaptation stage, with the shares of CBST.

    Releases: 15% (GTA5) or 20% (SYNTHIA) of the pixels and 5% more each round, SGD at 1e-4 (CRST: a constant 5e-5).
    """
    config.total_steps = 40_000 // config.rounds.number
    config.pseudo_labels.update(keep=0.15, balanced=config.method != "st", relative=config.method != "st")


def _as_cyclegan(config: ConfigDict) -> None:
    """CycleGAN's settings for CyCADA's 20 epochs of GTA5, one image of each domain a step; see methods/cyclegan.py.

    The rate stays for the first half, as CycleGAN's does; CyCADA's schedule is unverified.
    """
    config.total_steps, config.batch_size = 500_000, 2
    config.checkpoint_every, config.keep_checkpoints = 10_000, 2
    for name in ("generator", "discriminator"):
        config[f"{name}_optimizer"].update(
            kind="adam",
            learning_rate=2e-4,
            b1=0.5,
            b2=0.999,
            power=1.0,
            weight_decay=0.0,
            classifier_multiplier=1.0,
            schedule_steps=config.total_steps + 1,
            constant_steps=config.total_steps // 2,
        )


def _check_release(arguments: Mapping[str, str]) -> None:
    """Refuses a release that is not known, or that is asked for at another size or with another network."""
    known = [*RELEASED_HERE, *LINEAGE]
    if arguments["method"] not in known:
        raise ValueError(f"config argument fidelity=released: known of method {', '.join(known)}")
    if arguments["method"] in LINEAGE and (arguments["size"], arguments["backbone"]) != ("released", "resnet101"):
        raise ValueError("config argument fidelity=released: these releases have size=released, backbone=resnet101")


def _as_lineage(config: ConfigDict) -> None:
    """Network, batch and schedule of the releases that began with AdaptSegNet's, instead of FADA's.

    They have no source stage: adaptation starts from ImageNet or COCO weights. Their discriminators' optimizer is that
    of FADA's release.
    """
    adapts = STAGES[config.stage].adapts
    steps, schedule, branches = LINEAGE[config.method]
    config.total_steps, config.batch_size = steps, 2
    config.preprocessing.update(dataclasses.asdict(preprocessing.LINEAGE))
    config.model.update(variant="caffe", norm="statistics", active_rates=branches)
    config.generator_optimizer.update(learning_rate=2.5e-4, schedule_steps=schedule, lineage_repeats=True)
    config.discriminator_optimizer.schedule_steps = schedule
    config.knowledge.temperature = 1.0
    if adapts and config.method in ("minent", "advent"):
        config.model.heads = "levels"
    if config.method == "clan":
        config.generator_optimizer.warmup_steps = config.discriminator_optimizer.warmup_steps = 5_000
        config.options.focal = 2.0


def _lineage_augmentation(config: ConfigDict) -> None:
    """Images of those releases: drawn uniformly, without jitter. CLAN flips and scales them.

    CLAN's release scales by 0.8, 1 or 1.1; here it is anything between 0.8 and 1.1.
    """
    for name in ("source", "target"):
        config[name].sampling = "uniform"
        if config.method == "clan" and STAGES[config.stage].adapts:
            config[name].update(flip=True, scale=(0.8, 1.1), crop=config[name].size)


def _crops(config: ConfigDict) -> None:
    """CyCADA's crops of images 1,024 pixels wide, flipped as CycleGAN's are by default (unverified).

    Other data sets keep their size: what is left of it in multiples of 4 is the crop, 400 pixels at most.
    """
    for name in ("source", "target"):
        stream_config = config[name]
        stream_config.size = _WIDTH_1024.get(stream_config.dataset, stream_config.size)
        stream_config.crop = tuple(min(400, side // 4 * 4) for side in stream_config.size)
        stream_config.flip = True


# Of images of their own shape.
_WIDTH_1024 = {"gta5": (1024, 563), "synthia": (1024, 608), "cityscapes": (1024, 512), "crosscity": (1024, 512)}


def released_augmentation(config: ConfigDict, size: tuple[int, int] = (2048, 1024)) -> None:
    """Sampling and augmentation as released: jitter in the last two stages, geometry only in self-distillation.

    Paper: "random flip and color jittering" without saying where; images "randomly picked", sampling="uniform".

    Args:
      config: to change.
      size: of the images that the student is trained and tested on, of which it sees crops as large as the teacher's.
    """
    if STAGES[config.stage].translates:
        _crops(config)
        return
    if config.fidelity == "released" and config.method in LINEAGE:
        _lineage_augmentation(config)
        return
    config.source.sampling = "balanced"
    released_jitter(config)
    if config.stage == "self_distillation":
        config.target.update(flip=True, scale=(0.5, 1.5), crop=config.target.size)
        config.target.size = config.eval.size = size


def released_jitter(config: ConfigDict) -> None:
    """Colour jitter of the labelled images, as released: none in the source stage, nor where VGG-16 is distilled."""
    if config.stage != "source" and (config.stage, config.model.backbone) != ("self_distillation", "vgg16"):
        config[STAGES[config.stage].images].update(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)


def finish(config: ConfigDict) -> ConfigDict:
    """Locks the keys, so that a misspelt override is refused."""
    if config.method == "oracle":  # The upper bound: the source stage on labelled target images.
        config.source = config.target.copy_and_resolve_references()
    config.lock()
    return config


# Discriminators of patches tell output spaces apart too soon at the rate of 1e-3 that FADA's has in miniature.
PATCHES = ("feature_space", "adaptsegnet", "adaptsegnet_multi", "clan", "advent", "adaptpatch")
# Chosen for each method on images that no table reports (docs/systems.md); 0.03 for the others.
MINIATURE_LAMBDA = {
    **{"binary": 0.01, "minent": 0.003, "crosscity": 0.003, "fda": 0.01, "maxsquare": 0.1},
    **dict.fromkeys(PATCHES, 3e-4),
    **{"clan": 1e-3, "feature_space": 1e-3, "cda": 0.003, **dict.fromkeys(("st", "cbst", "crst"), 1.0)},
}
# Widths and patches of the miniature's scale.
MINIATURE_OPTIONS = {
    "fcn_wild": {"width": 64, "lambda_constraint": 0.01},  # Chosen likewise.
    "crosscity": {"width": 32},
    "adaptpatch": {"patch_height": 8, "patch_width": 16, "clusters": 20},
    "cycada": {"width": 64},
    "cyclegan": {"width": 16, "blocks": 3},
}


def miniature(config: ConfigDict) -> None:
    """A narrow network from random initialisation that a laptop trains in minutes."""
    adapts = STAGES[config.stage].adapts
    config.rounds.number = 3
    steps = {"source": 1_000, "adaptation": 750, "curriculum": 750, "self_training": 250, "self_distillation": 800}
    steps["translation"] = 600
    config.total_steps = steps[config.stage]
    for name, value in config.options.to_dict().items():
        if name.endswith("_steps"):  # Of an adaptation stage of 40,000 steps.
            config.options[name] = value * config.total_steps // 40_000
    config.loss_block_rows = 0
    config.checkpoint_every = 300
    config.keep_checkpoints = 2
    config.model.update(
        backbone="resnet18",
        norm="group",  # Batch norm would carry the source's statistics to the target.
        stage_sizes=(1, 1, 1, 1),
        widths=(16, 32, 48, 64),
        stem_width=16,
        output_stride=4,
        aspp_rates=(1, 2, 4, 8),
        dtype="float32",
    )
    config.discriminator.update(widths=(64, 64), patch_width=16)
    config.options.update(MINIATURE_OPTIONS.get(config.method, {}))
    config.student_from = "source"  # There are no ImageNet weights for this network.
    if STAGES[config.stage].translates:
        for name in ("generator", "discriminator"):
            rates = {"schedule_steps": config.total_steps + 1, "constant_steps": config.total_steps // 2}
            config[f"{name}_optimizer"].update(rates)
        return
    config.generator_optimizer.update(
        kind="adam",
        learning_rate=1e-3 if adapts else 2e-3,
        schedule_steps=config.total_steps + 1,
        weight_decay=0.0,
        classifier_multiplier=1.0,
    )
    rate = 1e-4 if adapts and config.method in PATCHES else 1e-3
    config.discriminator_optimizer.update(learning_rate=rate, schedule_steps=config.total_steps + 1)
    if config.lambda_adv:
        config.lambda_adv = MINIATURE_LAMBDA.get(config.method, 0.03)
    config.eval_batch_size = 10
    if config.stage == "self_distillation":
        config.pseudo_labels.keep = 0.5  # Chosen likewise; released: 1.
    if config.stage == "self_training":
        config.pseudo_labels.keep = 0.1 if config.method == "st" else 0.5


def miniature_streams(config: ConfigDict, source: tuple[int, int], target: tuple[int, int] = (128, 64)) -> None:
    """Streams at miniature size, without the released augmentation: only the student flips and scales its images."""
    for name, size in (("source", source), ("target", target), ("eval", target)):
        config[name] = stream(config[name].dataset, config[name].split, size, config[name].city)
    if STAGES[config.stage].translates:
        config.source.flip = config.target.flip = True
    if config.stage == "self_distillation":  # The student then stands multi-scale testing.
        config.target.update(flip=True, scale=(0.7, 1.4), crop=target)
