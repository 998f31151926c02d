"""Flax modules: feature extractors, classifier, discriminator."""

from fada_jax.models.layers import fold_batch_norm, resize_align_corners
from fada_jax.models.segmenter import BACKBONES, Discriminator, ModelSpec, Segmenter

__all__ = ["BACKBONES", "Discriminator", "ModelSpec", "Segmenter", "fold_batch_norm", "resize_align_corners"]
