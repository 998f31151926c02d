"""Flax modules: feature extractors, classifier, discriminator."""

from fada_jax.models.cells import ByClass, Pointwise
from fada_jax.models.checks import check_spec
from fada_jax.models.convolution import compute_dtype
from fada_jax.models.layers import (
    fold_batch_norm,
    height_width,
    interpolate,
    interpolation_matrix,
    pool,
    resize_align_corners,
)
from fada_jax.models.segmenter import BACKBONES, Discriminator, Outputs, PatchDiscriminator, Segmenter
from fada_jax.models.spec import DTYPES, ComputeType, Heads, ModelSpec, Norm, TranslationSpec, interchange
from fada_jax.models.translation import TranslationDiscriminator, TranslationGenerator, signed, unsigned

__all__ = [
    "BACKBONES",
    "DTYPES",
    "ByClass",
    "ComputeType",
    "Discriminator",
    "Heads",
    "ModelSpec",
    "Norm",
    "Outputs",
    "PatchDiscriminator",
    "Pointwise",
    "Segmenter",
    "TranslationDiscriminator",
    "TranslationGenerator",
    "TranslationSpec",
    "check_spec",
    "compute_dtype",
    "fold_batch_norm",
    "height_width",
    "interchange",
    "interpolate",
    "interpolation_matrix",
    "pool",
    "resize_align_corners",
    "signed",
    "unsigned",
]
