"""What ``predict`` writes about each image, which of it may be written again, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fada_jax import files, images
from fada_jax.classes import ClassSet
from fada_jax.errors import UserError
from fada_jax.storage.paths import listed


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is written of every image, and where.

    Attributes:
      folder: of all of it.
      submission: the file of the Cityscapes server alone.
      probabilities, confidence: whether these are written, too.
    """

    folder: Path
    submission: bool = False
    probabilities: bool = False
    confidence: bool = False

    def path(self, output: Path, ending: str) -> Path:
        """Of one file about an image."""
        return files.place(f"{self.folder / output}_{ending}")

    def check(self, outputs: Iterable[Path]) -> None:
        """Refuses what could not be written, or is not ours to replace.

        Raises:
          UserError: naming the file.
        """
        names = ["pred_labelIds.png"] if self.submission else ["label.png", "color.png", "overlay.png"]
        names += ["confidence.png"] if self.confidence else []
        with listed(self.folder):
            for output in outputs:
                for name in names:
                    files.check_output(self.path(output, name), ours=images.is_ours)
                if self.probabilities:
                    files.check_output(self.path(output, "probabilities.npy"), ours=are_our_probabilities)

    def write(self, output: Path, ending: str, pixels: np.ndarray) -> None:
        """Writes one picture about an image."""
        images.write_image(self.path(output, ending), pixels, prediction=True, ours=images.is_ours)

    def write_all(
        self,
        output: Path,
        image: np.ndarray,
        label: np.ndarray,
        probabilities: np.ndarray | None,
        class_set: ClassSet,
        ids: np.ndarray,
    ) -> None:
        """Writes everything about an image.

        Args:
          output: its name below the folder.
          image: uint8 [H, W, 3].
          label: class indices [H, W].
          probabilities: float32 [H, W, K], where they are wanted.
          class_set: of the indices.
          ids: uint8 [256], the stored value of each index.
        """
        if self.submission:
            self.write(output, "pred_labelIds.png", ids[label])
            return
        color = images.colorize(label, class_set)
        self.write(output, "label.png", ids[label])
        self.write(output, "color.png", color)
        self.write(output, "overlay.png", np.rint(0.5 * image + 0.5 * color).astype(np.uint8))
        if probabilities is None:
            return
        if self.probabilities:
            write_probabilities(self.path(output, "probabilities.npy"), probabilities)
        if self.confidence:
            self.write(output, "confidence.png", np.rint(255 * probabilities.max(-1)).astype(np.uint8))


def are_our_probabilities(path: Path) -> bool:
    """Whether a .npy is one of ours: the format has no place for a mark, but the label beside it has one.

    It must hold float32 [H, W, K], of the size of a label that this package wrote.
    """
    label = path.with_name(path.name.removesuffix("probabilities.npy") + "label.png")
    if not path.is_file() or not images.is_prediction(label):
        return False
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = images.check_image(label)
        return version == (1, 0) and dtype == np.float32 and len(shape) == 3 and shape[1::-1] == size
    except (OSError, ValueError, UserError):
        return False


def write_probabilities(path: Path, values: np.ndarray) -> None:
    """Writes float32 [H, W, K] as .npy, whole or not at all.

    Raises:
      UserError: a file that is not ours lies there.
      OSError: naming the file, where storage fails: ``np.save`` says how many values were written, and not why no more.
    """
    array = np.ascontiguousarray(values, np.float32)
    with files.replacing(path, ours=are_our_probabilities) as partial, partial.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
