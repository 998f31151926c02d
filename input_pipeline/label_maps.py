"""Labels of a stream without its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fada_jax.classes import ClassSet, label_table
from fada_jax.input_pipeline import decoding, reading, records
from fada_jax.input_pipeline.stream import Stream


def label_maps(
    data_dir: str | Path, stream: Stream, class_set: ClassSet, numbers: np.ndarray, damaged_records: str = "fail"
) -> Iterator[np.ndarray]:
    """Labels of some images of a split that ``streams.check`` has found readable, at the stream's size.

    Args:
      data_dir: converted data.
      stream: what to read; its augmentation does not count.
      class_set: classes of the labels.
      numbers: of the images, in the order in which they come.
      damaged_records: one of ``records.ON_DAMAGE``; 'skip' takes the next intact record of the split instead.

    Yields:
      uint8 [H, W] of class indices and ``IGNORE``.

    Raises:
      UserError: missing data, or a damaged record.
    """
    stored = records.open_split(stream.data_dir or data_dir, stream.dataset, stream.split, stream.city)
    table = label_table(stream.dataset, class_set, stored.encoding).tolist()
    width, height = stream.size

    def load(i: int) -> tuple[np.ndarray]:
        record = stored.read_usable(int(numbers[i]), damaged_records)
        return (np.asarray(decoding.look_up(decoding.stored_label(record), table, stream.size)),)

    def finish(label: Any) -> Any:
        return label

    blank = [np.zeros((height, width), np.uint8)]
    for batch in reading.batches(len(numbers), load, blank, finish, 1, stored.in_flight):
        yield batch[0]
