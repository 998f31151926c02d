"""CamVid day -> dusk, 11 classes: real photographs, 305 by day and 62 at dusk for training, 31 at dusk for the score.

What is scored, test_dusk, are the frames 0001TP_008550 to 0001TP_009450: 31 of the 62 dusk frames in test/ of the
public SegNet split. Its other 31, final_dusk, are kept for a last look: no setting is chosen and no number is reported
on them.

  python scripts/convert_dataset.py --dataset=camvid --raw_dir=CAMVID --data_dir=DATA
  python scripts/run_recipe.py --config=configs/camvid_day_to_dusk.py --workdir=W --config.data_dir=DATA \
      --config.init_from=IMAGENET
  python scripts/run_recipe.py --config=configs/camvid_day_to_dusk.py:size=miniature --workdir=W --config.data_dir=DATA

Arguments: stage, method, backbone, size (see configs/base.py). The released size is CamVid's own 480x360; 'miniature'
trains a narrow network on 192x144 images from random initialisation on a CPU.
"""

from ml_collections import ConfigDict

from fada_jax.configs import base


def get_config(arguments: str = "") -> ConfigDict:
    args = base.parse(arguments)
    config = base.get_config(args)
    config.task = "camvid_day_to_dusk"
    config.class_set = "camvid11"
    size = (480, 360)
    config.source = base.stream("camvid", "train_day", size)
    config.target = base.stream("camvid", "train_dusk", size)
    config.eval = base.stream("camvid", "test_dusk", size)
    base.released_augmentation(config, size)
    if args.size == "miniature":
        base.miniature(config)
        base.miniature_streams(config, (192, 144), (192, 144))
        # Few images for so many steps: flips in every stage, and the released jitter.
        config.source.flip = config.target.flip = True
        base.released_jitter(config)
        if args.stage == "adaptation":  # Chosen on train_dusk (docs/results.md).
            config.lambda_adv = {"fada": 0.1, "binary": 0.03}.get(args.method, config.lambda_adv)
    return base.finish(config)
