"""SYNTHIA -> Cityscapes, 16 classes, mIoU* over 13 (paper: table 2, 45.2 and 52.5 with ResNet-101).

  python scripts/run_recipe.py --config=configs/synthia_to_cityscapes.py --workdir=W --config.data_dir=DATA \
      --config.init_from=IMAGENET
  python scripts/run_recipe.py --config=configs/synthia_to_cityscapes.py:size=miniature --workdir=W

Arguments: stage, method, backbone, size (see configs/base.py).
"""

from ml_collections import ConfigDict

from fada_jax.configs import base


def get_config(arguments: str = "") -> ConfigDict:
    args = base.parse(arguments)
    config = base.get_config(args)
    config.task = "synthia_to_cityscapes"
    config.class_set = "synthia16"
    if args.fidelity == "equal":
        config.model.norm = "frozen"  # In every stage: live batch norm was found worse for SYNTHIA.
    config.source = base.stream("synthia", "train", (1280, 760))
    config.target = base.stream("cityscapes", "train", (1024, 512))
    config.eval = base.stream("cityscapes", "val", (1024, 512))
    base.released_augmentation(config)
    if args.method == "clan":
        config.options.local = 10.0
    if args.stage == "self_training":
        config.pseudo_labels.keep = 0.2
    if args.size == "miniature":
        base.miniature(config)
        base.miniature_streams(config, (128, 76))
    return base.finish(config)
