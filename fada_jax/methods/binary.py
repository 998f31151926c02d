"""Global feature alignment: D tells the domain of features alone ("Baseline (feat. only)", equations 1 and 4)."""

from __future__ import annotations

import dataclasses

from fada_jax.methods.adversarial import Adversarial


@dataclasses.dataclass(frozen=True)
class DomainLabels(Adversarial):
    """Binary domain labels [1, 0] and [0, 1] on features, with FADA's discriminator."""
