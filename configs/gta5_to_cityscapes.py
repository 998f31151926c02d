"""GTA5 -> Cityscapes, 19 classes (paper: table 3; 46.9 mIoU without and 49.2 / 50.1 with self-distillation / + MST).

  python scripts/run_recipe.py --config=configs/gta5_to_cityscapes.py --workdir=W --config.data_dir=DATA \
      --config.init_from=IMAGENET
  python scripts/run_recipe.py --config=configs/gta5_to_cityscapes.py:size=miniature --workdir=W

Arguments: stage, method, backbone, size (see configs/base.py). A released adaptation step (4 x 1280x720 and
4 x 1024x512, ResNet-101) is about 26 TFLOP.
"""

from ml_collections import ConfigDict

from fada_jax.configs import base


def get_config(arguments: str = "") -> ConfigDict:
    args = base.parse(arguments)
    config = base.get_config(args)
    config.task = "gta5_to_cityscapes"
    config.source = base.stream("gta5", "train", (1280, 720))
    config.target = base.stream("cityscapes", "train", (1024, 512))
    config.eval = base.stream("cityscapes", "val", (1024, 512))
    base.released_augmentation(config)
    if args.size == "miniature":
        base.miniature(config)
        base.miniature_streams(config, (128, 72))
    return base.finish(config)
