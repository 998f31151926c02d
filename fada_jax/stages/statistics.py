"""What a method finds out about the labels of the source before its first step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.input_pipeline import streams
from fada_jax.input_pipeline.label_maps import label_maps
from fada_jax.input_pipeline.stream import Stream
from fada_jax.methods import Prepared, States
from fada_jax.stages import data

# Labels that are looked at, spread evenly over the split where it has more.
MOST = 2_000


def refuse_batches(config: Config) -> None:
    """Refuses batches without a data set for a method that looks at all labels first.

    Raises:
      UserError: see above.
    """
    if isinstance(config.training_method, Prepared):
        raise UserError(
            f"config.method={config.method!r} looks at the labels of the source before its first step: train it on the "
            "config's data sets, not on batches of your own"
        )


def spread_numbers(config: Config, stream: Stream, log: Callable[[str], None]) -> np.ndarray:
    """Numbers of the images of a split whose labels are looked at.

    Raises:
      UserError: missing data.
    """
    images = streams.num_examples(config.data_dir, stream)
    count = min(images, MOST)
    log(f"{config.method}: looks at the labels of {count:,} of {images:,} images of {stream.dataset}/{stream.split}")
    return np.arange(count) * images // count


def with_statistics(config: Config, states: States, log: Callable[[str], None]) -> States:
    """``states`` of step 0 with the statistics that the method prepares, the same in every process.

    Args:
      config: of the stage.
      states: fresh ones; those of a method that prepares nothing come back as they are.
      log: receives what is looked at.

    Raises:
      UserError: labels that cannot be read or that do not suffice.
    """
    method = config.training_method
    if not isinstance(method, Prepared):
        return states
    stream = data.streams(config)["source"]
    numbers = spread_numbers(config, stream, log)
    labels = label_maps(config.data_dir, stream, config.classes, numbers, config.damaged_records)
    found = method.prepare(labels, config.classes.num_classes)
    own = {name: np.asarray(found[name], x.dtype).reshape(x.shape) for name, x in states["statistics"].items()}
    # Processes on other hardware may round in other ways.
    own = multihost_utils.broadcast_one_to_all(own)
    placed = {name: jax.device_put(np.asarray(x), states["statistics"][name].sharding) for name, x in own.items()}
    return {**states, "statistics": placed}
