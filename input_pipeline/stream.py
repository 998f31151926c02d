"""What a stream of batches is made of, said without TensorFlow."""

from __future__ import annotations

import dataclasses

from fada_jax.input_pipeline.augmentation import Augment


@dataclasses.dataclass(frozen=True)
class Stream:
    """A split of a data set as the network sees it.

    Attributes:
      dataset, split, city: which images.
      size: (width, height) that whole images are resized to.
      augment: random changes; training only.
      sampling: one of ``sampling.KINDS``; training only. All but 'uniform' need labels or pseudo labels.
      sampling_temperature: of 'rare'.
      labels: yield labels.
      pseudo_labels: file of ``pseudo_labels.write`` that replaces the labels; its maps hold class indices.
      landmarks: likewise, but its maps hold the landmarks of CDA's easy tasks, with what else these found out.
      data_dir: where the data set lies, instead of where all others do; '': there.
      role: tells streams of one split apart, which would otherwise draw the same images in the same order.
    """

    dataset: str
    split: str
    size: tuple[int, int]
    city: str = ""
    augment: Augment = dataclasses.field(default_factory=Augment)
    sampling: str = "uniform"
    sampling_temperature: float = 0.01
    labels: bool = True
    pseudo_labels: str = ""
    landmarks: str = ""
    data_dir: str = ""
    role: str = ""

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of what a batch holds."""
        return self.augment.crop or self.size
