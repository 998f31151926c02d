"""What the released code hands over at every step, typed by hand, and the comparison of a rehearsal with it.

``RELEASED`` was typed from notes on the released code and never from this one; sizes are (width)x(height). The release
has no Cross-City set-up: those rows follow GTA5, with Cityscapes as the source. What it lacks altogether (colour
matching, a control, pictures of training, files for other programs) is marked ``ours``.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Tasks -> their name in the table.
GTA5, SYNTHIA, CITIES = "gta5_to_cityscapes", "synthia_to_cityscapes", "cityscapes_to_crosscity"
TASKS = {GTA5: "GTA5", SYNTHIA: "SYNTHIA", CITIES: "Cross-City"}
RESNET, VGG = "resnet101", "vgg16"
BACKBONES = {RESNET: "ResNet-101", VGG: "VGG-16"}
# Data sets of a task -> which domain each is.
DOMAINS = {
    GTA5: {"gta5": "source", "cityscapes": "target"},
    SYNTHIA: {"synthia": "source", "cityscapes": "target"},
    CITIES: {"cityscapes": "source", "crosscity": "target"},
}
RAW = "raw data"
NOTHING = "-"

# A run is a task with a backbone; conversion belongs to all of them.
Run = tuple[str, str]
CONVERSION: Run = (RAW, RAW)
Fact = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One hand-over of the released code.

    Attributes:
      stage: where.
      what: is handed over.
      released: value of every run; or values by task or by backbone, of the runs that have the row at all. Several
        values of one row are sorted and joined by '; '.
      ours: the release has nothing of the kind; the value is what its neighbours suggest.
    """

    stage: str
    what: str
    released: str | Mapping[str, str]
    ours: bool = False

    def value(self, run: Run) -> str | None:
        """The released value of a run; None where the row is not about that run."""
        if (self.stage == RAW) != (run == CONVERSION):
            return None
        if isinstance(self.released, str):
            return self.released
        return self.released.get(run[0], self.released.get(run[1]))


_JITTER = "brightness 0.5, contrast 0.5, saturation 0.5, hue 0.2"
_LABELLED = "labelled source image"
_AS_TRAINED = "2048x1024 -> 1024x512"
_WHOLE = "2048x1024 -> 2048x1024"
_SCORED_AS_TRAINED = "seen at 1024x512, scored at 2048x1024, scales 1.0, not flipped"
_SCORED_MULTI_SCALE = "seen at 2048x1024, scored at 2048x1024, scales 0.7, 1.0, 1.3, each also flipped"
_AS_THE_NETWORK_SEES_THE_SOURCE = {
    GTA5: "1914x1052 -> 1280x720",
    SYNTHIA: "1280x760 -> 1280x760",
    CITIES: "2048x1024 -> 1024x512",
}
_SOURCE_BATCH = {
    GTA5: "image 1280x720, label 1280x720",
    SYNTHIA: "image 1280x760, label 1280x760",
    CITIES: "image 1024x512, label 1024x512",
}
_SOURCE_JITTER = {
    GTA5: f"at 1914x1052: {_JITTER}",
    SYNTHIA: f"at 1280x760: {_JITTER}",
    CITIES: f"at 2048x1024: {_JITTER}",
}


def _without(stage: str, image: str, *changes: str, ours: bool = False) -> list[Row]:
    """What must not happen to an image."""
    return [Row(stage, f"{image}, {change}", NOTHING, ours) for change in changes]


def _on_source(stage: str, *, ours: bool = False) -> list[Row]:
    """Labelled images of the source, which every stage before self-distillation trains on."""
    return [
        Row(stage, f"{_LABELLED}, resized", _AS_THE_NETWORK_SEES_THE_SOURCE, ours),
        Row(stage, "label of the source image, resized", _AS_THE_NETWORK_SEES_THE_SOURCE, ours),
        Row(stage, "to the network, labelled", _SOURCE_BATCH, ours),
        *_without(stage, _LABELLED, "scaled", "cropped", "flipped", ours=ours),
    ]


def _pictures(stage: str, value: str) -> list[Row]:
    """Predictions that TensorBoard shows while a stage is trained."""
    return [Row(stage, "target image for TensorBoard, resized", value, ours=True)]


def _score(row: str, *, ours: bool = False) -> list[Row]:
    """Scores of a model that was trained at 1024x512."""
    return [
        Row(f"scoring {row}", "tested target image, resized", _AS_TRAINED, ours),
        Row(f"scoring {row}", "test", _SCORED_AS_TRAINED, ours),
    ]


def _predicted(command: str, seen: str, *, ours: bool = False) -> list[Row]:
    """A user's image, whose labels are written at its own size."""
    return [
        Row(command, "image of any size", f"2048x1024, seen at {seen}", ours),
        Row(command, "written label", "2048x1024", ours),
    ]


RELEASED: tuple[Row, ...] = (
    # What users have on disk.
    Row(RAW, "gta5, stored", "image 1914x1052, label 1914x1052"),
    Row(RAW, "gta5, label file", "8 bits, palette"),
    Row(RAW, "synthia, stored", "image 1280x760, label 1280x760"),
    Row(RAW, "synthia, label file", "16 bits, several channels"),
    Row(RAW, "cityscapes, stored", "image 2048x1024, label 2048x1024"),
    Row(RAW, "cityscapes, label file", "8 bits, grey"),
    Row(RAW, "crosscity, stored", "image 2048x1024, label 2048x1024; image 2048x1024, label none"),
    Row(RAW, "crosscity, label file", "8 bits, grey"),
    # Source stage: no colour jitter.
    *_on_source("source"),
    *_without("source", _LABELLED, "jittered"),
    *_pictures("source", _AS_TRAINED),
    # Adversarial stage: the source is jittered at its own size, the target never.
    Row("adversarial", f"{_LABELLED}, jittered", _SOURCE_JITTER),
    *_on_source("adversarial"),
    Row("adversarial", "target image, resized", _AS_TRAINED),
    Row("adversarial", "to the network, target", "image 1024x512"),
    *_without("adversarial", "target image", "jittered", "scaled", "cropped", "flipped"),
    *_pictures("adversarial", _AS_TRAINED),
    # The control is the adversarial stage without its adversary.
    Row("control", f"{_LABELLED}, jittered", _SOURCE_JITTER, ours=True),
    *_on_source("control", ours=True),
    *_pictures("control", _AS_TRAINED),
    # The teacher sees what it was trained on; its softmax is upsampled to the size of the target's images.
    Row("pseudo labels", "target image for the teacher, resized", _AS_TRAINED),
    Row("pseudo labels", "teacher", "sees 1024x512, labels 2048x1024"),
    # Self-distillation: jitter (ResNet only), scale, crop, flip.
    Row(
        "self_distillation",
        "labelled target image, jittered",
        {RESNET: f"at 2048x1024: {_JITTER}", VGG: NOTHING},
    ),
    Row("self_distillation", "labelled target image, resized", _WHOLE),
    Row("self_distillation", "label of the target image, resized", _WHOLE),
    Row("self_distillation", "labelled target image, scaled", "2048x1024 by 0.5 to 1.5"),
    Row("self_distillation", "labelled target image, cropped", "to 1024x512, label alike"),
    Row("self_distillation", "labelled target image, flipped", "1024x512"),
    Row("self_distillation", "to the network, labelled", "image 1024x512, label 1024x512"),
    *_pictures("self_distillation", _WHOLE),
    # Scores are taken at the label's own size.
    *_score("source_only"),
    *_score("control", ours=True),
    Row("scoring colour_matching", "source image for its colours, resized", _AS_THE_NETWORK_SEES_THE_SOURCE, True),
    Row("scoring colour_matching", "target image for its colours, resized", _AS_TRAINED, ours=True),
    *_score("colour_matching", ours=True),
    *_score("adapted"),
    Row("scoring self_distilled", "tested target image, resized", _WHOLE),
    Row("scoring self_distilled", "test", "seen at 2048x1024, scored at 2048x1024, scales 1.0, not flipped"),
    Row("scoring self_distilled_multi_scale", "tested target image, resized", _WHOLE),
    Row("scoring self_distilled_multi_scale", "test", _SCORED_MULTI_SCALE),
    Row("evaluate --multi_scale", "tested target image, resized", _WHOLE),
    Row("evaluate --multi_scale", "test", _SCORED_MULTI_SCALE),
    Row("panel", "tested target image, resized", _AS_TRAINED, ours=True),
    Row("panel", "image of any size", "2048x1024, seen at 1024x512", ours=True),
    # The network's input in every test. The notes give the factors; that fractions of a pixel are cut off is PyTorch's.
    Row("tests", "input at scale 0.7", "2048x1024 -> 1433x716"),
    Row("tests", "input at scale 1.0", "1024x512 -> 1024x512; 2048x1024 -> 2048x1024"),
    Row("tests", "input at scale 1.3", "2048x1024 -> 2662x1331"),
    # Images of users: results at the image's own size.
    *_predicted("predict from adversarial", "1024x512"),
    *_predicted("predict", "2048x1024"),
    # An artifact resizes inside.
    Row("predict from artifact", "written label", "2048x1024", ours=True),
    *_predicted("predict from .pth", "2048x1024", ours=True),
    *_predicted("predict from .safetensors", "2048x1024", ours=True),
)

# PNG's colour types.
_COLOURS = {0: "grey", 2: "several channels", 3: "palette", 6: "several channels"}
# Streams that a fact names -> whose images they are.
_STREAMS = {
    "labelled": "labelled {domain} image",
    "target": "{domain} image",
    "tested": "tested {domain} image",
    "teacher": "{domain} image for the teacher",
    "pictures": "{domain} image for TensorBoard",
    "colours": "{domain} image for its colours",
}
# Kind of fact -> what is handed over and its value, over the fields of the fact and of ``_derived``.
_READ = {
    "stored": ("{dataset}, stored", "image {image}, label {label}"),
    "raw label": ("{dataset}, label file", "{bits} bits, {colours}"),
    "jitter": ("{images}, jittered", "at {size}: {jitters}"),
    "resize": ("{images}, resized", "{before} -> {after}"),
    "resize label": ("label of the {domain} image, resized", "{before} -> {after}"),
    "scale": ("{images}, scaled", "{before} by {range}"),
    "crop": ("{images}, cropped", "to {after}{alike}"),
    "flip": ("{images}, flipped", "{size}"),
    "batch": ("to the network, {part}", "{shapes}"),
    "teacher": ("teacher", "sees {input}, labels {labels}"),
    "evaluation": ("test", "seen at {input}, scored at {scored}, scales {views}"),
    "view": ("input at scale {scale}", "{before} -> {after}"),
    "prediction": ("image of any size", "{image}, seen at {input}"),
    "written": ("written label", "{size}"),
}
# Derived field -> the fields that it is made of.
_DERIVED = {
    "images": ("stream", "dataset"),
    "domain": ("stream", "dataset"),
    "colours": ("colour",),
    "jitters": ("strengths",),
    "range": ("factors",),
    "alike": ("labels",),
    "part": ("stream",),
    "shapes": ("image", "label"),
    "views": ("scales", "flip", "dataset"),
}
_CONTEXT = ("what", "stage", "method", "row")


class UncoveredError(ValueError):
    """A fact that no row of the table is about."""


def _derived(fact: Fact, domains: Mapping[str, str]) -> dict[str, str]:
    """What sentences say that is not word for word in the fact."""
    result, domain = {}, domains.get(fact.get("dataset", ""), "")
    if domain and fact.get("stream") in _STREAMS:
        result |= {"domain": domain, "images": _STREAMS[fact["stream"]].format(domain=domain)}
    if fact["what"] == "batch":
        result["part"] = {"source": "labelled", "target": "target"}[fact["stream"]]
        result["shapes"] = ", ".join(f"{key} {fact[key]}" for key in ("image", "label") if key in fact)
    if fact.get("colour") in _COLOURS:
        result["colours"] = _COLOURS[fact["colour"]]
    if "strengths" in fact:
        names = ("brightness", "contrast", "saturation", "hue")
        result["jitters"] = ", ".join(map("{} {}".format, names, fact["strengths"]))
    if "factors" in fact:
        result["range"] = "{} to {}".format(*fact["factors"])
    if fact["what"] == "crop":
        result["alike"] = ", label alike" if fact["labels"] else ""
    if "scales" in fact and domain == "target":
        flipped = "each also flipped" if fact["flip"] else "not flipped"
        result["views"] = f"{', '.join(map(str, fact['scales']))}, {flipped}"
    return result


def stage_of(command: str, fact: Fact) -> str:
    """Where in the table a command's fact belongs."""
    if fact["what"] == "view":  # A network is compiled once for all tests at one size.
        return "tests"
    if "row" in fact:
        return f"scoring {fact['row']}"
    if "stage" in fact:
        return "control" if (fact["stage"], fact["method"]) == ("adversarial", "control") else fact["stage"]
    return {"recipe": "panel"}.get(command, command)


def read(run: Run, command: str, fact: Fact) -> tuple[str, str, str]:
    """Stage, hand-over and value of a fact, in the table's words.

    Raises:
      UncoveredError: of a kind, with a field or of a data set that the table does not know.
    """
    if fact["what"] not in _READ:
        raise UncoveredError(f"nothing is known of {fact['what']!r}")
    texts = _READ[fact["what"]]
    known = {**fact, **_derived(fact, DOMAINS.get(run[0], {}))}
    named = {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}
    if missing := named - known.keys():
        raise UncoveredError(f"{fact['what']!r} lacks {', '.join(sorted(missing))}")
    told = {*_CONTEXT, *named, *(field for name in named for field in _DERIVED.get(name, ()))}
    if left := fact.keys() - told:
        raise UncoveredError(f"{fact['what']!r} says {', '.join(sorted(left))} too")
    what, value = (text.format_map(known) for text in texts)
    return stage_of(command, fact), what, value


@dataclasses.dataclass(frozen=True)
class Compared:
    """One row of one run: the released value beside ours.

    Attributes:
      released: ``NOTHING`` where nothing must be seen; '' where no row covers what was seen.
      seen: ``NOTHING`` where nothing was.
    """

    run: Run
    stage: str
    what: str
    released: str
    seen: str
    ours: bool = False

    @property
    def equal(self) -> bool:
        return self.released == self.seen


def compare(
    runs: Mapping[Run, Iterable[tuple[str, Fact]]], table: Sequence[Row] = RELEASED, datasets: Iterable[str] = ()
) -> list[Compared]:
    """Every row of every run beside what was seen of it, and after them what was seen and no row covers.

    Args:
      runs: what was noted, each fact with the command that noted it.
      table: what the release does.
      datasets: converted; rows about the raw data of others are left out. Empty: all.
    """
    datasets = tuple(datasets)
    result = []
    for run, facts in runs.items():
        seen: dict[tuple[str, str], set[str]] = {}
        for command, fact in facts:
            try:
                stage, what, value = read(run, command, fact)
            except UncoveredError as error:
                stage, what, value = command, str(fact["what"]), str(error)
            seen.setdefault((stage, what), set()).add(value)
        for row in table:
            released = row.value(run)
            if released is None or (row.stage == RAW and datasets and row.what.partition(",")[0] not in datasets):
                continue
            value = "; ".join(sorted(seen.pop((row.stage, row.what), ()))) or NOTHING
            result.append(Compared(run, row.stage, row.what, released, value, row.ours))
        result += [Compared(run, stage, what, "", "; ".join(sorted(values))) for (stage, what), values in seen.items()]
    return result


def name(runs: Sequence[Run], every: Sequence[Run]) -> str:
    """Words for some of ``every`` run: 'all', 'GTA5', 'VGG-16', 'GTA5 with VGG-16', ..."""
    if set(runs) == set(every):
        return "all"
    tasks, backbones = (list(dict.fromkeys(run[i] for run in runs)) for i in (0, 1))
    if len(tasks) * len(backbones) != len(runs):
        return ", ".join(f"{TASKS[task]} with {BACKBONES[backbone]}" for task, backbone in runs)
    parts = []
    if set(tasks) != {run[0] for run in every}:
        parts.append(", ".join(TASKS[task] for task in tasks))
    if set(backbones) != {run[1] for run in every}:
        parts.append(", ".join(BACKBONES[backbone] for backbone in backbones))
    return " with ".join(parts)


def compact(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """The rows with equal values of several runs as one, in JSON types: ``stage``, ``what``, ``runs``, ``released``,
    ``seen`` and, where the release has nothing of the kind, ``ours``."""
    every = [run for run in dict.fromkeys(row.run for row in compared) if run != CONVERSION]
    merged: dict[tuple, list[Run]] = {}
    for row in compared:
        key = (row.stage, row.what, row.released, row.seen, row.ours)
        merged.setdefault(key, []).append(row.run)
    order = {key: i for i, key in enumerate(dict.fromkeys((row.stage, row.what) for row in compared))}
    result = []
    for (stage, what, released, seen, ours), runs in sorted(merged.items(), key=lambda item: order[item[0][:2]]):
        line = {"stage": stage, "what": what, "runs": "all" if stage == RAW else name(runs, every)}
        result.append({**line, "released": released, "seen": seen, **({"ours": True} if ours else {})})
    return result


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compact`` as a table without what neither does: stages, runs and quantities that are alike come in
    one line, and what is as released is said once."""
    stages: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        released = row["released"] or "no such row"
        if (released, row["seen"]) != (NOTHING, NOTHING):
            key = (row["what"], row["runs"], released, row["seen"])
            stages.setdefault(key, []).append(row["stage"] + ("\\*" if row.get("ours") else ""))
    values: dict[tuple[str, str], list[str]] = {}
    for (what, runs, released, seen), names in stages.items():
        value = seen if seen == released else f"released: {released}; here: {seen}"
        cell = value if runs == "all" else f"{runs}: {value}"
        values.setdefault((", ".join(dict.fromkeys(names)), what), []).append(cell)
    quantities: dict[tuple[str, str], list[str]] = {}
    for (names, what), cells in values.items():
        quantities.setdefault((names, "; ".join(cells)), []).append(what)
    lines = [f"|{names}|{'; '.join(whats)}|{cell}|" for (names, cell), whats in quantities.items()]
    return "\n".join(["|stage|what|released and here|", "|---|---|---|", *lines]) + "\n"
