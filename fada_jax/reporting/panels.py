"""Pictures of predictions before and after adaptation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from fada_jax import images
from fada_jax.config import Config
from fada_jax.evaluation.predictor import from_model
from fada_jax.input_pipeline import streams
from fada_jax.stages import workdirs
from fada_jax.training import checkpoints

COLUMNS = ("image", "source", "adaptation", "label")


def write_panels(workdir: Path, adapted: str, config: Config, count: int = 4) -> None:
    """Image, source-only, adapted and ground truth of evenly spread evaluation images.

    Args:
      workdir: of a recipe. ``panels/`` receives them one by one, N_{image,source,adaptation,label}.png; ``panel.png``
        has them all.
      adapted: folder of its stage that adapts.
      config: of that stage.
      count: of images.
    """
    folders = [workdirs.stage_folder(workdir, stage) for stage in (COLUMNS[1], adapted)]
    segmenters = [from_model(checkpoints.load_model(folder)) for folder in folders]
    stream = config.eval.stream(augment=False)
    every = max(1, streams.num_examples(config.data_dir, stream) // count)
    batches = streams.eval_batches(config.data_dir, stream, class_set=config.classes, batch_size=1)
    rows = []
    for batch in itertools.islice(batches, 0, every * count, every):
        image, label = batch["image"][0], batch["label"][0]
        image = images.resize_image(image, (label.shape[1], label.shape[0]))
        predicted = [segment(image) for segment in segmenters]
        rows.append([image, *(images.colorize(x, config.classes) for x in (*predicted, label))])
        for column, picture in zip(COLUMNS, rows[-1], strict=True):
            images.write_image(workdir / "panels" / f"{len(rows) - 1}_{column}.png", picture)
    panel = images.panel(("target image", "source only", "adapted", "ground truth"), rows, config.classes)
    images.write_image(workdir / "panel.png", np.asarray(panel))
