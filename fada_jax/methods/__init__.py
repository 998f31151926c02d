"""Systems by name, one file each: the networks that a method trains beside G, its states, and its pure step.

A system is a frozen dataclass of the form of ``Method`` in a file of its own and a line in ``SYSTEMS``. Its fields are
filled from the config's keys of the same names, and those that no key has from ``config.options``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fada_jax.methods import stages
from fada_jax.methods.adaptpatch import AdaptPatch
from fada_jax.methods.adaptsegnet import AdaptSegNet
from fada_jax.methods.advent import Advent
from fada_jax.methods.adversarial import Adversarial
from fada_jax.methods.binary import DomainLabels
from fada_jax.methods.cda import Cda
from fada_jax.methods.clan import Clan
from fada_jax.methods.crosscity import CrossCity
from fada_jax.methods.cycada import Cycada
from fada_jax.methods.cyclegan import CycleGan
from fada_jax.methods.entropy import Entropy
from fada_jax.methods.fada import HardLabels, SoftLabels
from fada_jax.methods.fcn_wild import FcnWild
from fada_jax.methods.fda import Fda
from fada_jax.methods.feature_space import FeatureSpace
from fada_jax.methods.interface import Batch, Method, Metrics, Prepared, States, TrainingSpec
from fada_jax.methods.maxsquare import MaxSquare
from fada_jax.methods.minent import MinEnt
from fada_jax.methods.output_space import OutputSpace
from fada_jax.methods.self_training import Crst, SelfTraining
from fada_jax.methods.supervised import Supervised
from fada_jax.models import Heads

__all__ = [
    "SYSTEMS",
    "AdaptPatch",
    "AdaptSegNet",
    "Advent",
    "Adversarial",
    "Batch",
    "Cda",
    "Clan",
    "CrossCity",
    "Crst",
    "Cycada",
    "CycleGan",
    "DomainLabels",
    "Entropy",
    "FcnWild",
    "Fda",
    "FeatureSpace",
    "HardLabels",
    "MaxSquare",
    "Method",
    "Metrics",
    "MinEnt",
    "OutputSpace",
    "Prepared",
    "SelfTraining",
    "SoftLabels",
    "States",
    "Supervised",
    "System",
    "TrainingSpec",
    "build",
    "options_of",
]


class System(NamedTuple):
    """A method and the recipe that it is trained by.

    Attributes:
      method: its class.
      recipe: on equal terms with FADA.
      heads: what the network has in the stage that adapts, ``model.heads``.
      stage: the one that adapts, key of ``STAGES``.
    """

    method: type[Method]
    recipe: tuple[stages.Part, ...] = stages.ADAPTED
    heads: Heads = "one"
    stage: str = "adaptation"

    @property
    def adapts(self) -> bool:
        """Whether it learns from target images in that stage, what is tested."""
        return "target" in self.method.streams and not self.translates

    @property
    def translates(self) -> bool:
        """Whether it trains translators of images."""
        return stages.STAGES[self.stage].translates


# By ``config.method``.
SYSTEMS: Mapping[str, System] = {
    "fada": System(SoftLabels),
    "hard": System(HardLabels),
    "binary": System(DomainLabels),
    "output_space": System(OutputSpace),
    "entropy": System(Entropy),
    "fcn_wild": System(FcnWild, stages.ALIGNED),
    "crosscity": System(CrossCity, stages.ALIGNED),
    "feature_space": System(FeatureSpace, stages.ALIGNED),
    "adaptsegnet": System(AdaptSegNet, stages.ALIGNED),
    "adaptsegnet_multi": System(AdaptSegNet, stages.ALIGNED, "levels"),
    "clan": System(Clan, stages.ALIGNED, "two"),
    "minent": System(MinEnt, stages.ALIGNED),
    "advent": System(Advent, stages.ALIGNED),
    "adaptpatch": System(AdaptPatch, stages.ALIGNED),
    "fda": System(Fda, stages.ALIGNED),
    "maxsquare": System(MaxSquare, stages.ALIGNED),
    "st": System(SelfTraining, stages.SELF_TRAINED, stage="self_training"),
    "cbst": System(SelfTraining, stages.SELF_TRAINED, stage="self_training"),
    "crst": System(Crst, stages.SELF_TRAINED, stage="self_training"),
    "cycada": System(Cycada, stages.TRANSLATED_ALIGNED),
    "cyclegan": System(CycleGan, stages.TRANSLATED, stage="translation"),
    "cda": System(Cda, stages.CURRICULUM, stage="curriculum"),
    "control": System(Supervised, stages.CONTROL),
    "source_only": System(Supervised, stages.SOURCE_ALONE),
    "oracle": System(Supervised, stages.SOURCE_ALONE),
}
# Fields that the config has keys for; all others are ``config.options``.
SHARED = ("temperature", "clip", "threshold", "lambda_adv", "source_size", "target_size")


def _fields(method: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(method)]


def options_of(name: str) -> dict[str, Any]:
    """Fields of a method that no key of the config has, with their defaults."""
    defaults = SYSTEMS[name].method()
    return {field: getattr(defaults, field) for field in _fields(defaults) if field not in SHARED}


def build(name: str, shared: Mapping[str, Any], options: Mapping[str, Any]) -> Method:
    """A method with those of the ``shared`` values that it has fields for, and with its options."""
    method = SYSTEMS[name].method
    return method(**{key: value for key, value in {**shared, **options}.items() if key in _fields(method)})
