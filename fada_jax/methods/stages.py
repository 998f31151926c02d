"""Stages and recipes as data: which images a stage trains on, and which stages follow one another.

A stage is named by ``config.stage``; ``Part`` puts it into a recipe, in a folder of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from fada_jax.ranges import FolderName


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of stage.

    Attributes:
      images: the config's stream whose images carry the labels that G is trained on.
      pseudo_labels: the config's stream that a teacher labels; empty: none.
      adapts: trains the config's method; otherwise G learns from labels alone.
      parts: equal parts that the batch is cut into, one for each domain.
      translates: trains image translators, from images alone, instead of G.
      labels: what the teacher's labels are: 'classes', or 'landmarks', the answers of CDA's easy tasks.
    """

    images: str
    pseudo_labels: str = ""
    adapts: bool = False
    parts: int = 1
    translates: bool = False
    labels: Literal["classes", "landmarks"] = "classes"


STAGES: Mapping[str, Stage] = {
    "source": Stage("source"),
    "adaptation": Stage("source", adapts=True, parts=2),
    "self_training": Stage("source", pseudo_labels="target", adapts=True, parts=2),
    "curriculum": Stage("source", pseudo_labels="target", adapts=True, parts=2, labels="landmarks"),
    "self_distillation": Stage("target", pseudo_labels="target"),
    "translation": Stage("source", parts=2, translates=True),
}
# Names of earlier versions: configs, folders and checkpoints that have them stay readable.
RENAMED: Mapping[str, str] = {"adversarial": "adaptation"}


def current_name(stage: str) -> str:
    """The name of today of a stage."""
    return RENAMED.get(stage, stage)


@dataclasses.dataclass(frozen=True)
class Part:
    """A stage in a recipe.

    Attributes:
      folder: of its own in the recipe's workdir.
      stage: key of ``STAGES``.
      method: replaces the config's; empty: the config's own.
      init_from: folder of the stage whose weights it starts from; ``STUDENT``: as ``config.student_from`` says; empty:
        ``config.init_from``.
      teacher_from: folder of the stage that labels its images.
      images: folder of a translation stage whose translations are the source's images; empty: the data set's own.
      repeated: it stands for ``config.rounds.number`` parts, FOLDER_1 and so on, each of which starts from the one
        before it and has it for its teacher; the first as said here.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    folder: FolderName
    stage: str
    method: str = ""
    init_from: str = ""
    teacher_from: str = ""
    images: str = ""
    repeated: bool = False


STUDENT = "student_from"
_SOURCE = Part("source", "source")
_ADAPTATION = Part("adaptation", "adaptation", init_from="source")
_CONTROL = Part("control", "adaptation", "control", init_from="source")
_DISTILLATION = Part("self_distillation", "self_distillation", init_from=STUDENT, teacher_from="adaptation")

SOURCE_ALONE = (_SOURCE,)
# As the releases of AdaptSegNet's lineage: from ImageNet weights, without a source stage.
RELEASED = (Part("adaptation", "adaptation"),)
CONTROL = ALIGNED = (_SOURCE, _ADAPTATION)
SELF_TRAINED = (_SOURCE, Part("round", "self_training", init_from="source", teacher_from="source", repeated=True))
_TRANSLATION = Part("translation", "translation", "cyclegan")
_ON_TRANSLATED = dataclasses.replace(_SOURCE, images="translation")
# Source only on translated images, and from there on CyCADA's alignment of features.
TRANSLATED = (_TRANSLATION, dataclasses.replace(_ON_TRANSLATED, method="source_only"))
TRANSLATED_ALIGNED = (_TRANSLATION, _ON_TRANSLATED, dataclasses.replace(_ADAPTATION, images="translation"))
CURRICULUM = (_SOURCE, Part("adaptation", "curriculum", init_from="source", teacher_from="source"))
# Adapted and distilled as in the paper, with the control beside it.
ADAPTED = (_SOURCE, _CONTROL, _ADAPTATION, _DISTILLATION)
