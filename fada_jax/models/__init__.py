"""Flax modules: feature extractors, classifier, discriminator."""

from fada_jax.models.convolution import compute_dtype
from fada_jax.models.layers import fold_batch_norm, height_width, resize_align_corners
from fada_jax.models.segmenter import BACKBONES, Discriminator, Outputs, PatchDiscriminator, Segmenter
from fada_jax.models.spec import DTYPES, ComputeType, Heads, ModelSpec, Norm, interchange

__all__ = [
    "BACKBONES",
    "DTYPES",
    "ComputeType",
    "Discriminator",
    "Heads",
    "ModelSpec",
    "Norm",
    "Outputs",
    "PatchDiscriminator",
    "Segmenter",
    "compute_dtype",
    "fold_batch_norm",
    "height_width",
    "interchange",
    "resize_align_corners",
]
