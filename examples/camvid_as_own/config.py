"""CamVid day -> dusk as anybody's own data: seven classes of its eleven (commands: docs/custom_data.md).

Arguments: stage, method, backbone, size (see configs/base.py).
"""

from pathlib import Path

from ml_collections import ConfigDict

from fada_jax.configs import base


def get_config(arguments: str = "") -> ConfigDict:
    args = base.parse(arguments)
    config = base.get_config(args)
    config.task = "camvid_as_own"
    config.class_set = str(Path(__file__).with_name("classes.json"))
    size = (480, 360)
    config.source = base.stream("day", "train", size)
    config.target = base.stream("dusk", "train", size)
    config.eval = base.stream("dusk", "val", size)
    base.released_augmentation(config, size)
    if args.size == "miniature":
        base.miniature(config)
        base.miniature_streams(config, (192, 144), (192, 144))
        config.source.flip = config.target.flip = True
    return base.finish(config)
