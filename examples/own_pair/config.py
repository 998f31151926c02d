"""Your own pair of domains: copy this folder, write your classes, names and sizes (commands: docs/custom_data.md).

Arguments: stage, method, backbone, size (see configs/base.py). Sizes are (width, height), all images are resized to
them: take your images' own shape, at most about 1280x720 for a 40 GB card.
"""

from pathlib import Path

from ml_collections import ConfigDict

from fada_jax.configs import base


def get_config(arguments: str = "") -> ConfigDict:
    args = base.parse(arguments)
    config = base.get_config(args)
    config.task = "own_pair"
    config.class_set = str(Path(__file__).with_name("classes.json"))
    source, target = (1280, 720), (1024, 512)
    config.source = base.stream("rendered", "train", source)  # Labelled.
    config.target = base.stream("photos", "train", target)  # Needs no labels.
    config.eval = base.stream("photos", "val", target)  # Labelled, for the score alone.
    base.released_augmentation(config, target)
    if args.size == "miniature":
        base.miniature(config)
        base.miniature_streams(config, (128, 72), (128, 64))
    return base.finish(config)
