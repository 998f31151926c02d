"""Flax modules: feature extractors, classifier, discriminator."""

from fada_jax.models.convolution import compute_dtype
from fada_jax.models.layers import fold_batch_norm, resize_align_corners
from fada_jax.models.segmenter import BACKBONES, Discriminator, Segmenter
from fada_jax.models.spec import DTYPES, ModelSpec, interchange

__all__ = [
    "BACKBONES",
    "DTYPES",
    "Discriminator",
    "ModelSpec",
    "Segmenter",
    "compute_dtype",
    "fold_batch_norm",
    "interchange",
    "resize_align_corners",
]
