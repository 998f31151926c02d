"""The facts that commands noted, in the words of the table of the released code, and their comparison with it."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fada_jax.scripts.rehearsal.released import DOMAINS, NOTHING, RAW, RELEASED, Row, Run

Fact = Mapping[str, Any]

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
# Kind of fact -> the hand-over and its value, over the fields of the fact and of ``_derived``.
_SENTENCES = {
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
    """Fields of the sentences that are not word for word in the fact."""
    result: dict[str, str] = {}
    domain = domains.get(fact.get("dataset", ""), "")
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
        return "control" if (fact["stage"], fact["method"]) == ("adaptation", "control") else fact["stage"]
    return {"recipe": "panel"}.get(command, command)


def read(run: Run, command: str, fact: Fact) -> tuple[str, str, str]:
    """Stage, hand-over and value of a fact, in the table's words.

    Raises:
      UncoveredError: of a kind, with a field or of a data set that the table does not know.
    """
    if fact["what"] not in _SENTENCES:
        raise UncoveredError(f"nothing is known of {fact['what']!r}")
    texts = _SENTENCES[fact["what"]]
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
