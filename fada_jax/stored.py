"""The schema of everything that is stored as JSON: what each document holds, in which ranges, and in which format.

A document is read by ``documents.parse`` or ``documents.read``, brought to today's format by a function here, and
checked against its dataclass; whatever does not fit is refused with the file and the field. A field that is added gets
a default; one that changes its meaning gets a new format number and a step in that function.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, Len
from pydantic import StringConstraints

from fada_jax import classes, documents
from fada_jax.classes import ClassSet
from fada_jax.documents import STRICT
from fada_jax.errors import UserError
from fada_jax.models.spec import ComputeType, ModelSpec, TranslationSpec
from fada_jax.preprocessing import Preprocessing
from fada_jax.ranges import Finite, FolderName, NonNegative, Positive, Scales, Share, Size, Whole

Step = Whole
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Percent = Annotated[Finite, Ge(0), Le(100)]


@dataclasses.dataclass(frozen=True)
class Parent:
    """A model that a stage began with: its step, and the SHA-256 of its weights."""

    __pydantic_config__: ClassVar = STRICT
    step: Step
    digest: Digest


@dataclasses.dataclass(frozen=True)
class LandmarkOrigin:
    """What decides the answers of CDA's easy tasks, beside the teacher and the target's images."""

    __pydantic_config__: ClassVar = STRICT
    source: tuple[str, str, str]  # Data set, city and split.
    source_size: Size
    source_images: Positive  # That were looked at.
    superpixels: Positive  # About so many an image.
    kept: Share


@dataclasses.dataclass(frozen=True)
class PseudoLabelOrigin:
    """What decides the pseudo labels of a stage."""

    __pydantic_config__: ClassVar = STRICT
    teacher: Digest  # Of its weights.
    teacher_step: Step
    classes: tuple[str, ...]
    selection: dict[str, bool | int | float]  # Of ``training.selection.Selection``.
    scales: Scales
    teacher_size: Size
    label_size: Size
    images: tuple[str, str, str]  # Data set, city and split.
    num_images: Positive
    prior: tuple[str, str, str] | None = None  # Of the labels that a spatial prior is made of.
    landmarks: LandmarkOrigin | None = None  # None: the labels are classes.


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint, and a file of weights exported from it, says about itself (format 1)."""

    __pydantic_config__: ClassVar = STRICT
    format: Literal[1]
    fada_jax: str  # Version that wrote it.
    versions: dict[str, str]  # Of libraries.
    config: dict[str, Any]  # That trains it, of ``config.Config.plain``.
    model: ModelSpec
    preprocessing: Preprocessing
    class_set: ClassSet | None  # None: feature extractor alone.
    images: dict[str, Whole] = dataclasses.field(default_factory=dict)  # Of each stream of the batch.
    compute_dtype: str = ""
    parents: dict[str, Parent] = dataclasses.field(default_factory=dict)  # By config key.
    pseudo_labels: dict[str, Any] | None = None  # A ``PseudoLabelOrigin``; {}: an earlier version made them.
    next_batch: Step | None = None  # Step of the checkpoint.
    checkpoint_step: Step | None = None  # Of a file of weights.
    translator: TranslationSpec | None = None  # Where it holds image translators instead of a segmenter.

    def plain(self) -> dict[str, Any]:
        """In JSON types; what does not apply is left out."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {key: value for key, value in values.items() if value is not None or key == "class_set"}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """``manifest.json``, which a stage writes into its workdir before anything else (format 1)."""

    __pydantic_config__: ClassVar = STRICT
    format: Literal[1]
    made_by: str  # This package and its version.
    config: dict[str, Any]  # That the workdir belongs to.
    parents: dict[str, Parent]  # As in ``Meta``.


@dataclasses.dataclass(frozen=True)
class _Tested:
    size: Size


@dataclasses.dataclass(frozen=True)
class _Predicting:
    """What prediction takes from the config in ``Meta``; the whole of it is ``config.stored``'s."""

    eval: _Tested
    multi_scale: Scales
    total_steps: Positive = 1


@dataclasses.dataclass(frozen=True)
class Artifact:
    """``model.json`` of an artifact (format 2: its files have checksums)."""

    __pydantic_config__: ClassVar = STRICT
    format: Literal[2]
    fada_jax: str
    class_set: ClassSet
    preprocessing: Preprocessing
    input_size: Size
    scales: Scales
    model: ModelSpec
    checkpoint_step: Step
    platforms: tuple[str, ...]
    dtype: dict[str, ComputeType]  # By platform.


@dataclasses.dataclass(frozen=True)
class TranslationOrigin:
    """What translated images were made of."""

    __pydantic_config__: ClassVar = STRICT
    translator: Digest  # Of its weights.
    translator_step: Step
    size: Size  # That it worked at.
    images: tuple[str, str, str]  # Data set, city and split.


@dataclasses.dataclass(frozen=True)
class ConversionNote:
    """``conversion.json`` of a converted data set (format 2: with what it was made from)."""

    __pydantic_config__: ClassVar = STRICT
    format: Literal[2]
    resize: tuple[Positive, Positive] | None
    encoding: Literal["png", "jpeg", "tiff"]
    images: dict[str, Positive]  # By split.
    skipped: Whole
    class_map: dict[str, Any] | None
    raw: dict[str, Digest]  # By split: of the names and sizes of its files; {} in format 1.
    translated: TranslationOrigin | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """A row of results: what tables are made of. Other fields are allowed."""

    miou: Percent
    iou: Annotated[dict[str, Percent | None], Len(1)]
    class_set: str
    num_images: Positive
    scored_at: str
    dataset: str
    split: str
    accuracy: Percent | None = None
    miou_13: Percent | None = None
    name: str = ""
    mode: str = ""


@dataclasses.dataclass(frozen=True)
class Row(Scores):
    """A row of ``Results``."""

    name: Annotated[str, Len(1)] = dataclasses.field(kw_only=True)  # Without the default of ``Scores``.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """``recipe.json`` of a recipe: folders of its stages, in their order."""

    stages: Annotated[tuple[FolderName, ...], Len(1)]


@dataclasses.dataclass(frozen=True)
class Results:
    """``results.json`` of a recipe."""

    config: str
    seed: Whole
    rows: Annotated[tuple[Row, ...], Len(1)]
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Domain:
    city: str = ""


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What a report takes from the ``config.json`` of a stage."""

    task: str
    method: str
    total_steps: Positive
    batch_size: Positive
    target: _Domain


@dataclasses.dataclass(frozen=True)
class Spent:
    """Where the wall time of a stage went, over all starts of its command; kinds are ``training.goodput``'s."""

    at: Finite  # When it was written, in seconds since 1970.
    starts: Positive
    seconds: dict[str, NonNegative]


@dataclasses.dataclass(frozen=True)
class LogLine:
    """A line of ``metrics.jsonl``; its losses are numbers of any name."""

    step: Step
    time: Spent | None = None  # Earlier versions wrote none.


@dataclasses.dataclass(frozen=True)
class _Distance:
    ccd: Annotated[dict[str, NonNegative | None], Len(1)]
    mean: NonNegative | None = None


@dataclasses.dataclass(frozen=True)
class _StageDistances:
    both: _Distance


@dataclasses.dataclass(frozen=True)
class Distances:
    """``ccd.json``: Class Center Distances by stage."""

    stages: Annotated[dict[str, _StageDistances], Len(1)]


@dataclasses.dataclass(frozen=True)
class VariantScores:
    """Scores of a row of an ablation."""

    miou: Percent
    iou: Annotated[dict[str, Percent | None], Len(1)]
    miou_13: Percent | None = None


@dataclasses.dataclass(frozen=True)
class SeedScores:
    """What an ablation keeps of a finished seed: what made it, and scores by row."""

    config: dict[str, Any]
    scores: Annotated[dict[str, VariantScores], Len(1)]


# Confusion matrices by row; rows of a matrix are labels.
Confusions = dict[str, tuple[tuple[Annotated[int, Ge(0), Le(2**62)], ...], ...]]


# Upgrades ------------------------------------------------------------------------------------------------------------


def _newest(values: Any, source: str | Path, formats: int, kind: str) -> dict[str, Any]:
    """``values`` with a format that this version knows.

    Raises:
      UserError: no object, or a format of a later version.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: {kind} must be an object, not {documents.shown(values)}")
    number = values.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= formats:
        known = "1" if formats == 1 else f"1 to {formats}"
        raise UserError(f"{source}: format={documents.shown(number)} is unknown to this version, which reads {known}")
    return {"format": number, **values}


def meta(values: Any, source: str | Path) -> Meta:
    """The ``Meta`` in ``values``; the first checkpoints held no more than the name of a class set.

    Raises:
      UserError: naming ``source`` and the field that cannot be.
    """
    values = _newest(values, source, 1, "what it says about its model")
    if isinstance(values.get("class_set"), str):
        values["class_set"] = _named_class_set(values["class_set"], source)
    values.setdefault("versions", {})
    values.setdefault("fada_jax", "")
    result = documents.check(values, Meta, source)
    documents.check(result.config, _Predicting, f"{source}: config")
    if result.pseudo_labels:
        documents.check(result.pseudo_labels, PseudoLabelOrigin, f"{source}: pseudo_labels")
    if result.class_set:
        _same_classes(result.model, result.class_set, source)
    return result


def _same_classes(model: ModelSpec, class_set: ClassSet, source: str | Path) -> None:
    if class_set.num_classes != model.num_classes:
        raise UserError(
            f"{source}: its model has {model.num_classes} classes, its class set {class_set.name!r} "
            f"{class_set.num_classes}"
        )


def _named_class_set(name: str, source: str | Path) -> dict[str, Any] | None:
    if not name:
        return None
    try:
        return dataclasses.asdict(classes.get_class_set(name))
    except ValueError as error:
        raise UserError(f"{source}: class_set: {error}") from error


def manifest(values: Any, source: str | Path) -> Manifest:
    """The ``Manifest`` in ``values``.

    Raises:
      UserError: naming ``source`` and the field that cannot be.
    """
    return documents.check(_newest(values, source, 1, "a manifest"), Manifest, source)


def artifact(values: Any, source: str | Path) -> Artifact:
    """The ``Artifact`` in ``values``; format 1 had no checksums, and at first one compute type.

    Raises:
      UserError: naming ``source`` and the field that cannot be.
    """
    values = _newest(values, source, 2, "an artifact's description")
    if values["format"] == 1:
        computed = values["model"].get("dtype") if isinstance(values.get("model"), dict) else None
        platforms = values.get("platforms", ["cpu", "cuda", "tpu"])
        one_type = dict.fromkeys(platforms, computed) if isinstance(platforms, list) else computed
        values = {"dtype": one_type, **values, "format": 2}
    result = documents.check(values, Artifact, source, advice="export it again")
    _same_classes(result.model, result.class_set, source)
    if untyped := set(result.platforms) - result.dtype.keys():
        raise UserError(f"{source}: dtype names no type for the platform {min(untyped)!r}: export it again")
    return result


def conversion_note(values: Any, source: str | Path) -> ConversionNote:
    """The ``ConversionNote`` in ``values``; format 1 did not say what it was made from, nor at first the encoding.

    Raises:
      UserError: naming ``source`` and the field that cannot be.
    """
    values = _newest(values, source, 2, "a note of a conversion")
    if values["format"] == 1:
        values = {"encoding": "tiff", "raw": {}, **values, "format": 2}
    return documents.check(values, ConversionNote, source, advice="convert again with --overwrite")
