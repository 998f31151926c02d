"""Cityscapes -> Cross-City, 13 classes, one target city (paper: table 1).

  python scripts/run_recipe.py --config=configs/cityscapes_to_crosscity.py:city=Rome --workdir=W \
      --config.data_dir=DATA --config.init_from=IMAGENET
  python scripts/run_recipe.py --config=configs/cityscapes_to_crosscity.py:city=Rome,size=miniature --workdir=W

Arguments: city (Rome, Rio, Tokyo, Taipei), stage, method, backbone, size (see configs/base.py). The released code has
no Cross-City set-up: the settings are those of GTA5 -> Cityscapes.
"""

from ml_collections import ConfigDict

from fada_jax.classes import CITIES
from fada_jax.configs import base


def get_config(arguments: str = "") -> ConfigDict:
    args = base.parse(arguments, city="Rome")
    if args.city not in CITIES:
        raise ValueError(f"config argument city={args.city!r}: one of {', '.join(CITIES)}")
    config = base.get_config(args)
    config.task = "cityscapes_to_crosscity"
    config.class_set = "crosscity13"
    config.source = base.stream("cityscapes", "train", (1024, 512))
    config.target = base.stream("crosscity", "train", (1024, 512), args.city)
    config.eval = base.stream("crosscity", "test", (1024, 512), args.city)
    base.released_augmentation(config)
    if args.size == "miniature":
        base.miniature(config)
        base.miniature_streams(config, (128, 64))
    return base.finish(config)
