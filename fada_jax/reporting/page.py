"""The HTML page about recipes, made of the files that they left."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from fada_jax import __version__, documents, files, images, stored
from fada_jax.errors import UserError
from fada_jax.methods.stages import RENAMED
from fada_jax.ranges import Finite
from fada_jax.reporting import figures, paper
from fada_jax.reporting.panels import COLUMNS
from fada_jax.reporting.rows import LABELS, label
from fada_jax.stages import workdirs
from fada_jax.storage import lines
from fada_jax.training import goodput

TEMPLATE = Path(__file__).with_name("page.html")
STAGES = ("source", "control", "adaptation", "self_distillation")
# Rows that have bars and a confusion matrix.
SHOWN = ("source_only", "adapted", "self_distilled")
_AGAIN = "scripts/run_recipe.py writes it anew when it is run again"
# Pixels that a panel's image is wide at most.
PANEL_WIDTH = 1024


@dataclasses.dataclass(frozen=True)
class Run:
    """What a recipe left in its workdir.

    Attributes:
      name: shown.
      results: of results.json.
      configs: config of each stage.
      metrics: steps and losses of metrics.jsonl by stage.
      spent: where the time of each stage went, of the last line of metrics.jsonl; None where it does not say.
      confusions: confusion matrix by row name; may be empty.
      ccd: of ccd.json; None where it was not measured.
      panels: rows of PNG files by column of ``panels.COLUMNS``.
    """

    name: str
    results: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Sequence[Mapping[str, float]]]
    spent: Mapping[str, stored.Spent | None]
    confusions: Mapping[str, Any]
    ccd: Mapping[str, Any] | None
    panels: Sequence[Mapping[str, Path]]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        return {row["name"]: row for row in self.results["rows"]}

    @property
    def task(self) -> str:
        return self.configs["source"]["task"]


def read_run(workdir: Path, name: str) -> Run:
    """What is there of a recipe.

    Raises:
      UserError: no finished recipe, or a file of it that cannot be used.
    """
    path = workdir / "results.json"
    if not path.is_file():
        seeds = sorted(str(p.parent) for p in workdir.glob("seed*/results.json"))
        hint = f": it is an ablation's, name its seeds {', '.join(seeds)}" if seeds else ""
        raise UserError(f"{path} is not there{hint or ': finish the recipe with scripts/run_recipe.py first'}")
    results = read_results(path)
    classes = list(results["rows"][0]["iou"])
    folders = {stage: workdirs.stage_folder(workdir, stage) for stage in STAGES}
    folders = {stage: folder for stage, folder in folders.items() if (folder / "config.json").is_file()}
    if "source" not in folders:
        raise UserError(f"{workdir / 'source' / 'config.json'} is not there: the stage folders belong to the results")
    return Run(
        name,
        results,
        {stage: read_checked(folder / "config.json", stored.StageConfig) for stage, folder in folders.items()},
        {stage: read_metrics(folder / "metrics.jsonl") for stage, folder in folders.items()},
        {stage: read_spent(folder / "metrics.jsonl") for stage, folder in folders.items()},
        read_confusions(workdir / "confusion.json", len(classes)),
        read_distances(workdir / "ccd.json"),
        read_panels(workdir),
    )


def read_checked(path: Path, kind: Any, advice: str = "") -> Any:
    """The JSON in a file, of types that fit ``kind``.

    Raises:
      UserError: naming the file and the field that does not, with the advice.
    """
    values = documents.read(path)
    documents.check(values, kind, path, advice=advice)
    return values


def read_results(path: Path) -> dict[str, Any]:
    """A recipe's results, whose rows have different names and the same classes.

    Raises:
      UserError: naming the file and the field that cannot be.
    """
    results = read_checked(path, stored.Results, _AGAIN)
    first, names = results["rows"][0], set()
    for i, row in enumerate(results["rows"]):
        if list(row["iou"]) != list(first["iou"]):
            raise UserError(f"{path}: rows[{i}].iou has other classes than rows[0].iou")
        if row["name"] in names:
            raise UserError(f"{path}: rows[{i}].name={row['name']!r} is there twice")
        names.add(row["name"])
    return results


def read_confusions(path: Path, num_classes: int) -> dict[str, Any]:
    """Confusion matrices by row, none where the file is not there.

    Raises:
      UserError: naming the file and the matrix that cannot be.
    """
    matrices = read_checked(path, stored.Confusions, _AGAIN) if path.is_file() else {}
    for name, matrix in matrices.items():
        if {len(matrix), *map(len, matrix)} != {num_classes}:
            raise UserError(f"{path}: {name} must be {num_classes} rows of {num_classes} numbers, as results.json says")
    return matrices


def read_distances(path: Path) -> dict[str, Any] | None:
    """Class Center Distances by stage; None where they were not measured.

    Raises:
      UserError: naming the file and the field that cannot be.
    """
    if not path.is_file():
        return None
    distances = read_checked(path, stored.Distances, "measure again with scripts/ccd.py")
    first = next(iter(distances["stages"].values()))["both"]["ccd"]
    for name, stage in distances["stages"].items():
        if list(stage["both"]["ccd"]) != list(first):
            raise UserError(f"{path}: stages.{name}.both.ccd has other classes than the stage before it")
    return distances


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Steps and losses of a stage's log, of the lines that have any.

    Raises:
      UserError: naming the line that is none.
    """
    found = []
    for number, line in enumerate(lines.read(path), 1):
        if not line.strip():
            continue
        values = documents.parse(line, f"{path} line {number}")
        documents.check(values, stored.LogLine, f"{path} line {number}")
        losses = {key: value for key, value in values.items() if key.startswith("loss")}
        documents.check(losses, dict[str, Finite], f"{path} line {number}")
        if "loss_seg" in losses:
            found.append({"step": values["step"], **losses})
    return found


def read_spent(path: Path) -> stored.Spent | None:
    """Where the time of a stage went, of the last line of its log; None in those of earlier versions."""
    found = lines.read(path)
    return documents.check(documents.parse(found[-1], f"{path}"), stored.LogLine, path).time if found else None


def read_panels(workdir: Path) -> list[dict[str, Path]]:
    """Rows of a recipe's panels that are complete; earlier versions called a column by the old name of its stage."""
    rows = []
    for image in sorted((workdir / "panels").glob("*_image.png")):
        stem = image.name.removesuffix("_image.png")
        paths = {name: image.with_name(f"{stem}_{name}.png") for name in (*COLUMNS, *RENAMED)}
        paths |= {new: paths[old] for old, new in RENAMED.items() if paths[old].is_file()}
        row = {name: paths[name] for name in COLUMNS}
        if all(file.is_file() for file in row.values()):
            rows.append(row)
    return rows


def data_url(data: bytes, kind: str) -> str:
    """Bytes inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(figure: Figure) -> str:
    """A figure inside the page."""
    return data_url(figures.to_svg(figure).encode(), "svg+xml")


def panel_image(path: Path) -> str:
    """A panel's image inside the page.

    Raises:
      UserError: not an image.
    """
    image = images.read_image(path)
    height = round(image.shape[0] * min(1, PANEL_WIDTH / image.shape[1]))
    size = min(PANEL_WIDTH, image.shape[1]), max(1, height)
    # Colours of classes must not mix.
    method = Image.Resampling.BICUBIC if path.stem.endswith("_image") else Image.Resampling.NEAREST
    buffer = io.BytesIO()
    Image.fromarray(image).resize(size, method).save(buffer, "PNG")
    return data_url(buffer.getvalue(), "png")


def class_table(run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """IoU by class of a run's rows and of the paper's, in the layout of tables 1 to 3.

    Returns:
      class names, and rows with ``label``, ``iou`` (in the order of the names), ``miou``, ``miou_13``, ``ours`` and
      ``note`` (what to mind of a row of the paper's).
    """
    names = list(next(iter(run.rows.values()))["iou"])
    measured = [(label(row), row["iou"], row["miou"], row.get("miou_13"), True, "") for row in run.rows.values()]
    city = run.configs["source"]["target"]["city"]
    printed = [row for row in paper.rows(run.task) if list(row.iou) == names and row.group == (city or row.group)]
    of_paper = [(f"{row.method} ({row.group})", row.iou, row.miou, row.miou_13, False, row.note) for row in printed]
    keys = ("label", "iou", "miou", "miou_13", "ours", "note")
    rows = [dict(zip(keys, row, strict=True)) for row in (*measured, *of_paper)]
    return names, [{**row, "iou": [row["iou"][name] for name in names]} for row in rows]


def notes(table: list[dict[str, Any]]) -> dict[str, str]:
    """Notes on the rows of a class table -> the labels of the rows that each is about."""
    labels: dict[str, list[str]] = {}
    for row in table:
        if row["note"]:
            labels.setdefault(row["note"], []).append(row["label"])
    return {note: ", ".join(rows) for note, rows in labels.items()}


def section(run: Run) -> dict[str, Any]:
    """Everything that the template shows of one run."""
    rows, first = run.rows, next(iter(run.rows.values()))
    names, table = class_table(run)
    bars = {label(row): row["iou"] for row in rows.values() if row["name"] in SHOWN}
    ccd = {name: stage["both"] for name, stage in run.ccd["stages"].items()} if run.ccd else {}
    scored = f"{first['num_images']} images of {first['dataset']}/{first['split']}"
    return {
        "name": run.name,
        "config": run.results["config"],
        "seed": run.results["seed"],
        "overrides": dict(sorted(run.results.get("overrides", {}).items())),
        "scored": f"{scored}, {first['class_set']}, scored at the label's size {first['scored_at']}, last checkpoints",
        "stages": [
            {
                "name": stage,
                "steps": config["total_steps"],
                "batch": config["batch_size"],
                "method": config["method"],
                "time": goodput.summary(spent.seconds, spent.starts) if (spent := run.spent[stage]) else "",
            }
            for stage, config in run.configs.items()
        ],
        "rows": [
            {
                "label": label(row),
                "miou": row["miou"],
                "miou_13": row.get("miou_13"),
                "gain": row["miou"] - first["miou"],
                "accuracy": row.get("accuracy"),
                "paper": paper.COMPONENTS.get(row["name"]) if run.task == "gta5_to_cityscapes" else None,
            }
            for row in rows.values()
        ],
        "star": any(row.get("miou_13") is not None for row in rows.values()),
        "names": names,
        "class_table": table,
        "notes": notes(table),
        "curves": {s: picture(figures.training_curves(s, lines)) for s, lines in run.metrics.items() if lines},
        "bars": picture(figures.iou_bars(bars)) if bars else "",
        "confusions": [
            (label(rows[name]), picture(figures.confusion_matrix(run.confusions[name], names)))
            for name in SHOWN
            if name in run.confusions and name in rows
        ],
        "ccd": picture(figures.ccd_bars(ccd)) if ccd else "",
        "panels": [{column: panel_image(path) for column, path in panel.items()} for panel in run.panels],
        "full_config": json.dumps(run.configs, indent=1, sort_keys=True),
    }


def compared(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """mIoU of every row in all runs that have it, and its mean."""
    names = list(dict.fromkeys(name for run in runs for name in run.rows))
    result = []
    for name in names:
        values = [run.rows[name]["miou"] if name in run.rows else None for run in runs]
        scored = [value for value in values if value is not None]
        result.append({"label": LABELS.get(name, name), "values": values, "mean": sum(scored) / len(scored)})
    return result


def run_names(workdirs: Sequence[Path]) -> list[str]:
    """Shortest names that tell the workdirs apart."""
    short = [path.absolute().name for path in workdirs]
    return short if len(set(short)) == len(short) else [str(path) for path in workdirs]


def page(workdirs: Sequence[Path]) -> str:
    """The page of all workdirs.

    Raises:
      UserError: one of them is not a finished recipe.
    """
    runs = [read_run(path, name) for path, name in zip(workdirs, run_names(workdirs), strict=True)]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        runs=[section(run) for run in runs], compared=compared(runs) if len(runs) > 1 else [], version=__version__
    )


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours."""
    return files.is_ours(path, b'<meta name="generator" content="fada-jax') or files.is_ours(path, b"<title>fada-jax: ")
