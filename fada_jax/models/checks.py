"""What a ModelSpec must keep to that no single field tells."""

from __future__ import annotations

from fada_jax.errors import UserError
from fada_jax.models.resnet import RESNETS
from fada_jax.models.segmenter import BACKBONES
from fada_jax.models.spec import ModelSpec


def check_spec(spec: ModelSpec) -> None:
    """Refuses a network whose numbers do not fit together, under the names of ``config.model``.

    Args:
      spec: of one of ``BACKBONES``.

    Raises:
      UserError: naming the key, its value and what is allowed.
    """
    backbone = BACKBONES[spec.backbone]
    if spec.remat and not backbone.remat:
        raise UserError("config.model.remat=True needs a ResNet: other backbones have no blocks to compute again")
    if spec.variant == "caffe" and spec.backbone not in RESNETS:
        raise UserError("config.model.variant='caffe' needs a ResNet: other backbones have one form")
    if spec.heads == "levels" and not backbone.levels:
        raise UserError("config.model.heads='levels' needs a ResNet, whose layer3 the auxiliary classifier reads")
    for key in ("stage_sizes", "widths"):
        value = getattr(spec, key)
        if len(value) not in (0, backbone.widths):
            raise UserError(f"config.model.{key}={value} must be 0 or {backbone.widths} numbers of at least 1")
    if spec.active_rates > len(spec.aspp_rates):
        raise UserError(
            f"config.model.active_rates={spec.active_rates} must be at most {len(spec.aspp_rates)}, the numbers in "
            "config.model.aspp_rates"
        )
