"""Every config key with its meaning and its released value; the task files fill in data sets and sizes.

Arguments after the colon of ``--config=configs/TASK.py:key=value,...`` choose a variant; ``--config.key=value`` then
overrides any single key. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from ml_collections import ConfigDict

STAGES = ("source", "adversarial", "self_distillation")
METHODS = ("fada", "hard", "binary", "output_space", "entropy", "control", "source_only", "oracle")
SIZES = ("released", "miniature")
BACKBONES = ("resnet101", "resnet50", "resnet34", "resnet18", "vgg16")
ARGUMENTS = {"stage": "source", "method": "fada", "backbone": "resnet101", "size": "released"}


def parse(text: str, **defaults: str) -> ConfigDict:
    """Config arguments ``key=value,key=value`` over the defaults.

    Raises:
      ValueError: an argument or a value that does not exist.
    """
    arguments = {**ARGUMENTS, **defaults}
    for item in filter(None, (text or "").split(",")):
        key, separator, value = item.partition("=")
        if not separator or key not in arguments:
            raise ValueError(f"config argument {item!r}: expected key=value with a key of {', '.join(arguments)}")
        arguments[key] = value
    for key, allowed in (("stage", STAGES), ("method", METHODS), ("size", SIZES), ("backbone", BACKBONES)):
        if arguments[key] not in allowed:
            raise ValueError(f"config argument {key}={arguments[key]!r}: one of {', '.join(allowed)}")
    return ConfigDict(arguments)


def stream(dataset: str = "", split: str = "", size: tuple[int, int] = (0, 0), city: str = "") -> ConfigDict:
    """One stream of images, without augmentation."""
    config = ConfigDict()
    config.dataset = dataset  # Data set under data_dir.
    config.split = split  # Its split.
    config.city = city  # Cross-City only: Rome, Rio, Tokyo or Taipei.
    config.size = size  # The whole image is resized to this: bicubic with antialiasing, labels nearest.
    config.sampling = "uniform"  # 'uniform' epochs, 'balanced' by class as released, or 'rare' classes first.
    config.sampling_temperature = 0.01  # Of 'rare': the lower, the rarer the classes.
    config.flip = False  # Random horizontal flips.
    config.scale = ()  # (low, high) of a random scale after resizing; empty: none.
    config.crop = ()  # Random crop after scaling, padded with black and ignored labels; empty: none.
    config.brightness = 0.0  # Colour jitter, by torchvision's definition.
    config.contrast = 0.0  # Likewise.
    config.saturation = 0.0  # Likewise.
    config.hue = 0.0  # Likewise, in turns of the colour circle.
    # Colours change before resizing and cropping, as released. False: after both, for less time (docs/data.md).
    config.jitter_first = True
    return config


def optimizer(**values: float | str) -> ConfigDict:
    """Optimizer of one network, see ``fada_jax.optim.OptimizerSpec``."""
    config = ConfigDict()
    config.kind = "sgd"  # 'sgd' as in PyTorch, or 'adam'.
    config.learning_rate = 5e-4  # At step 0. Paper: 2.5e-4 in every stage.
    config.schedule_steps = 31_250  # Length of the poly decay, longer than the run: the rate never reaches 0.
    config.power = 0.9  # Exponent of the poly decay.
    config.weight_decay = 5e-4  # On every trainable tensor. Paper: 1e-4.
    config.momentum = 0.9  # SGD.
    config.b1 = 0.9  # Adam, decay of the mean.
    config.b2 = 0.99  # Adam, decay of the variance.
    config.eps = 1e-8  # Adam.
    config.classifier_multiplier = 10.0  # The classifier's rate over the feature extractor's.
    config.update(values)
    return config


def get_config(arguments: ConfigDict) -> ConfigDict:
    """The released settings of a stage, with empty streams."""
    stage, method = arguments.stage, arguments.method
    adversarial = stage == "adversarial"
    vgg = arguments.backbone == "vgg16"

    config = ConfigDict()
    config.data_dir = "data"  # Where scripts/convert_dataset.py put the TFRecords.
    config.damaged_records = "fail"  # A record whose checksum differs: 'fail', or 'skip' and say so on stderr.
    config.seed = 0  # Determines initialisation and every random choice of the input.
    config.task = ""  # Name of the config file.
    config.stage = stage  # One of STAGES.
    config.method = method  # What is adapted and how: of fada_jax/methods, or a baseline without adaptation.
    config.size = arguments.size  # 'released' or 'miniature'.
    config.class_set = "cityscapes19"  # Classes trained and scored: of fada_jax/classes.py, or a class map (.json).
    config.total_steps = 40_000 if adversarial else 20_000  # Steps of the stage.
    config.batch_size = 8  # Global; adversarial stage: half source, half target.
    config.accumulate_steps = 1  # Micro-batches that a batch is worked through in, where it does not fit at once.
    config.loss_block_rows = 32  # Rows of full-resolution pixels that a loss holds at a time; 0: all.
    config.checkpoint_every = 2_000  # Steps between checkpoints.
    config.keep_checkpoints = 5  # The last ones that are kept.
    config.keep_every = 0  # Checkpoints at multiples of these steps are kept, too; 0: none.
    # Steps between scores on config.eval, of which the best by mIoU is kept, too; 0: never. Choosing a model by the
    # very labels that are reported flatters it: name another eval.split, or say so.
    config.eval_every = 0
    config.on_non_finite = "stop"  # A step that makes a NaN or an infinity: 'stop', or 'skip' and count it.
    config.log_every = 50  # Steps between log lines; nothing is fetched from the device in between.
    config.log_images = 4  # Target images whose predictions TensorBoard shows at each checkpoint; 0: none.
    config.wandb = ""  # Project of Weights & Biases that receives the logs too; empty: none.
    config.init_from = ""  # Workdir whose weights start the stage; empty: random initialisation.
    config.teacher_from = ""  # Self-distillation: workdir of the adapted model that labels the target images.
    config.num_devices = 0  # Devices in all; 0: every one there is.
    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # Devices that share each large parameter and its optimizer state; they split the batch too.
    config.mesh.spatial = 1  # Devices that share the rows of an image; all others multiply to data parallelism.

    model = config.model = ConfigDict()
    model.backbone = arguments.backbone  # One of BACKBONES.
    # Self-distillation from GTA5 trains batch norm; every other stage keeps it frozen.
    model.norm = "live" if stage == "self_distillation" and not vgg else "frozen"  # 'frozen', 'live' or 'group'.
    model.stage_sizes = ()  # ResNet blocks per stage; empty: the backbone's own.
    model.widths = ()  # Channels per stage; empty: the backbone's own.
    model.stem_width = 64  # Channels of the ResNet stem.
    model.stem_pool = True  # Max-pool after the ResNet stem.
    model.output_stride = 8  # Input pixels per feature pixel (ResNet).
    model.aspp_rates = (6, 12, 18, 24)  # Dilations of the classifier.
    model.remat = False  # ResNet: compute the insides of blocks again in the backward pass instead of keeping them.
    # Compute type: 'float32', 'bfloat16' or 'auto', which is bfloat16 on accelerators and float32 on CPUs. Parameters
    # stay float32.
    model.dtype = "auto"

    config.discriminator = ConfigDict()
    config.discriminator.widths = (256, 128)  # Hidden channels of D.

    config.preprocessing = ConfigDict()
    config.preprocessing.channel_order = "BGR" if vgg else "RGB"  # VGG-16 starts from Caffe-style weights.
    config.preprocessing.scale = 1.0 if vgg else 1.0 / 255.0  # Applied to 0-255 values first.
    config.preprocessing.mean = (103.939, 116.779, 123.68) if vgg else (0.485, 0.456, 0.406)  # In the network's order.
    config.preprocessing.std = (1.0, 1.0, 1.0) if vgg else (0.229, 0.224, 0.225)  # Likewise.
    config.generator_optimizer = optimizer()
    if adversarial:
        config.generator_optimizer.update(learning_rate=2.5e-4, schedule_steps=62_500)
    config.discriminator_optimizer = optimizer(
        kind="adam", learning_rate=1e-4, schedule_steps=62_500, weight_decay=0.0, classifier_multiplier=1.0
    )

    config.lambda_adv = 0.0 if method == "control" else 0.001  # Weight of L_adv; 0 is the control without adaptation.
    config.knowledge = ConfigDict()
    config.knowledge.temperature = 1.8  # T, divides the logits, in L_seg too.
    config.knowledge.clip = 0.9  # Confidence clipping of soft labels (table 6).
    config.knowledge.threshold = 0.9  # Hard labels of pixels below this confidence are ignored.

    config.pseudo_labels = ConfigDict()
    config.pseudo_labels.keep = 1.0  # Share of the pixels of each predicted class that is labelled, the surest first.
    config.pseudo_labels.relative = False  # Label by probability over the class's threshold (CBST), not by the argmax.
    config.pseudo_labels.multi_scale = False  # Label with multi-scale testing.
    config.student_from = "init_from"  # In a recipe the student starts from 'init_from', 'source' or 'adversarial'.

    config.source = stream()  # Labelled images.
    config.target = stream()  # Images without labels; self-distillation trains on them with pseudo labels.
    config.eval = stream()  # What the model is scored on, at the label's own size.
    config.eval_batch_size = 1  # Images on each device in evaluation.
    config.multi_scale = (0.7, 1.0, 1.3)  # Scales of multi-scale testing, each also flipped.
    return config


def released_augmentation(config: ConfigDict) -> None:
    """Sampling and augmentation as released: jitter in the last two stages, geometry only in self-distillation.

    Paper: "random flip and color jittering" without saying where; images "randomly picked", sampling="uniform".
    """
    config.source.sampling = "balanced"
    released_jitter(config)
    if config.stage == "self_distillation":
        # Full-size images scaled by 0.5-1.5 and cut to 1024x512: the distilled model is tested at 2048x1024.
        config.target.update(flip=True, scale=(0.5, 1.5), crop=(1024, 512))
        config.target.size = config.eval.size = (2048, 1024)


def released_jitter(config: ConfigDict) -> None:
    """Colour jitter of the labelled images, as released: none in the source stage, nor where VGG-16 is distilled."""
    labelled = {"adversarial": config.source, "self_distillation": config.target}.get(config.stage)
    if labelled is not None and (config.stage, config.model.backbone) != ("self_distillation", "vgg16"):
        labelled.update(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)


def finish(config: ConfigDict) -> ConfigDict:
    """Locks the keys, so that a misspelt override is refused."""
    if config.method == "oracle":
        # The upper bound: the source stage on labelled target images.
        size = config.target.size
        config.source = config.target.copy_and_resolve_references()
        config.source.size = size
    config.lock()
    return config


def miniature(config: ConfigDict) -> None:
    """A narrow network from random initialisation that a laptop trains in minutes; every other key as released."""
    adversarial = config.stage == "adversarial"
    config.total_steps = {"source": 1_000, "adversarial": 750, "self_distillation": 800}[config.stage]
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
    config.discriminator.widths = (64, 64)
    config.generator_optimizer.update(
        kind="adam",
        learning_rate=1e-3 if adversarial else 2e-3,
        schedule_steps=config.total_steps + 1,
        weight_decay=0.0,
        classifier_multiplier=1.0,
    )
    config.discriminator_optimizer.update(learning_rate=1e-3, schedule_steps=config.total_steps + 1)
    if config.lambda_adv:
        # Chosen for each method on images that no table reports (docs/results.md).
        config.lambda_adv = 0.01 if config.method == "binary" else 0.03
    config.eval_batch_size = 10
    config.student_from = "source"  # There are no ImageNet weights for this network.
    if config.stage == "self_distillation":
        config.pseudo_labels.keep = 0.5  # Chosen likewise; released: 1.


def _miniature_augmentation(config: ConfigDict) -> None:
    """As released, self-distillation alone flips and scales: the student then stands multi-scale testing."""
    if config.stage == "self_distillation":
        config.target.update(flip=True, scale=(0.7, 1.4), crop=config.target.size)


def miniature_streams(config: ConfigDict, source: tuple[int, int], target: tuple[int, int] = (128, 64)) -> None:
    """Streams at miniature size, without the augmentation that suits the released size."""
    for name, size in (("source", source), ("target", target), ("eval", target)):
        old = config[name]
        config[name] = stream(old.dataset, old.split, size, old.city)
    _miniature_augmentation(config)
