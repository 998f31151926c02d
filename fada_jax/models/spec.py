"""What determines the shapes of a segmentation network."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

from fada_jax.documents import STRICT
from fada_jax.ranges import Positive, Rates, Whole, Widths

Norm = Literal["frozen", "live", "group", "statistics"]
ComputeType = Literal["auto", "float32", "bfloat16"]
Heads = Literal["one", "levels", "two"]
DTYPES: tuple[str, ...] = get_args(ComputeType)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that determines the shapes of G; it is stored in checkpoints."""

    __pydantic_config__: ClassVar = STRICT
    backbone: str  # One of BACKBONES of fada_jax/models/segmenter.py.
    num_classes: int  # K.
    # Self-distillation from GTA5 trains batch norm; every other released stage keeps it frozen. 'statistics': scale
    # and bias alone are frozen (AdaptSegNet).
    norm: Norm = "frozen"
    stage_sizes: Widths = ()  # ResNet blocks per stage; empty: the backbone's own.
    widths: Widths = ()  # Channels per stage; empty: the backbone's own.
    stem_width: Positive = 64  # Channels of the ResNet stem.
    stem_pool: bool = True  # Max-pool after the ResNet stem.
    output_stride: Literal[4, 8, 16, 32] = 8  # Input pixels per feature pixel (ResNet).
    aspp_rates: Rates = (6, 12, 18, 24)  # Dilations of the classifier's parallel convolutions.
    # Classifiers: 'one'; 'levels': beside it an auxiliary one on layer3 (AdaptSegNet); 'two': with the same features,
    # and their sum predicts (CLAN).
    heads: Heads = "one"
    # Compute type; 'auto' is bfloat16 on accelerators and float32 on CPUs. Parameters stay float32.
    dtype: ComputeType = "float32"
    remat: bool = False  # ResNet: compute the insides of blocks again in the backward pass instead of keeping them.
    variant: Literal["torchvision", "caffe"] = "torchvision"  # ResNet: 'caffe' is AdaptSegNet's.
    active_rates: Whole = 0  # So many of aspp_rates take part; 0: all, AdaptSegNet: 2.

    @property
    def active_branches(self) -> int:
        """Convolutions of a classifier that take part in its sum."""
        return self.active_rates or len(self.aspp_rates)


@dataclasses.dataclass(frozen=True)
class TranslationSpec:
    """Everything that determines the shapes of an image translator; it is stored in checkpoints."""

    __pydantic_config__: ClassVar = STRICT
    width: Positive = 64  # Channels after the first convolution; twice and four times as many follow.
    blocks: Positive = 9  # Residual blocks.
    dtype: ComputeType = "float32"  # As ``ModelSpec.dtype``.


def interchange(stored: ModelSpec, wanted: ModelSpec) -> list[tuple[str, Any, Any]]:
    """What two networks must agree in for the weights of one to serve the other: config key and both values.

    All kinds of batch norm hold the same arrays, so that only group norm tells norms apart.
    """
    fields = ["backbone", "variant", "stage_sizes", "widths", "stem_width", "stem_pool", "output_stride", "aspp_rates"]
    if "group" in (stored.norm, wanted.norm):
        fields.append("norm")
    pairs = [(f"model.{field}", getattr(stored, field), getattr(wanted, field)) for field in fields]
    return [*pairs, ("model.active_rates", stored.active_branches, wanted.active_branches)]
