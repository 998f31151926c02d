"""The rehearsal: its comparison refuses what differs and what no row covers; the documentation shows its last run."""

import dataclasses
import json

import numpy as np
import pytest
from commands import command

from fada_jax.classes import ENCODINGS
from fada_jax.configs import cityscapes_to_crosscity, gta5_to_cityscapes, synthia_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.input_pipeline import layouts, raw_files
from fada_jax.scripts.rehearsal import checks, commands, comparison, inputs, report
from fada_jax.scripts.rehearsal import released as table

RUN = (table.GTA5, table.VGG)
RUNS = [(task, backbone) for task in table.TASKS for backbone in table.BACKBONES]
EVERY = [table.CONVERSION, *RUNS]
ROWS = (
    table.Row("source", "labelled source image, resized", {table.GTA5: "1914x1052 -> 1280x720"}),
    table.Row("source", "labelled source image, jittered", table.NOTHING),
)
CONTEXT = {"stage": "source", "method": "fada", "stream": "labelled", "dataset": "gta5"}
RESIZED = {"what": "resize", "before": "1914x1052", "after": "1280x720", **CONTEXT}


def compare(*facts, rows=ROWS):
    return comparison.compare({RUN: [("recipe", fact) for fact in facts]}, rows)


def test_what_is_as_released_is_equal():
    assert [(row.what, row.seen, row.equal) for row in compare(RESIZED)] == [
        ("labelled source image, resized", "1914x1052 -> 1280x720", True),
        ("labelled source image, jittered", "-", True),
    ]


@pytest.mark.parametrize(
    ("facts", "released", "seen"),
    [
        ([], "1914x1052 -> 1280x720", "-"),
        ([{**RESIZED, "after": "640x360"}], "1914x1052 -> 1280x720", "1914x1052 -> 640x360"),
        (
            [RESIZED, {**RESIZED, "before": "1280x720"}],
            "1914x1052 -> 1280x720",
            "1280x720 -> 1280x720; 1914x1052 -> 1280x720",
        ),
        (
            [RESIZED, {"what": "jitter", "size": "1280x720", "strengths": [0.5, 0.5, 0.5, 0.2], **CONTEXT}],
            "-",
            "at 1280x720: brightness 0.5, contrast 0.5, saturation 0.5, hue 0.2",
        ),
    ],
)
def test_a_fact_that_differs_is_a_difference(facts, released, seen):
    (differing,) = [row for row in compare(*facts) if not row.equal]
    assert (differing.released, differing.seen) == (released, seen)


@pytest.mark.parametrize(
    ("fact", "stage", "seen"),
    [
        ({"what": "rotate", "by": 3, **CONTEXT}, "recipe", "nothing is known of 'rotate'"),
        ({**RESIZED, "method": "fada", "filter": "nearest"}, "recipe", "'resize' says filter too"),
        ({**RESIZED, "dataset": "synthia"}, "recipe", "'resize' lacks images"),
        ({**RESIZED, "stream": "another"}, "recipe", "'resize' lacks images"),
        ({"what": "resize"}, "recipe", "'resize' lacks after, before, images"),
        ({**RESIZED, "stage": "adaptation"}, "adaptation", "1914x1052 -> 1280x720"),
        ({**RESIZED, "dataset": "cityscapes"}, "source", "1914x1052 -> 1280x720"),
    ],
)
def test_a_fact_that_no_row_covers_is_a_difference(fact, stage, seen):
    (differing,) = [row for row in compare(RESIZED, fact) if not row.equal]
    assert (differing.stage, differing.released, differing.seen) == (stage, "", seen)
    assert "released: no such row; here: " in report.markdown(report.compact([differing]))


def as_released():
    """Every row of every run, with what the release does in both columns."""
    rows = comparison.compare({run: [] for run in EVERY})
    return [dataclasses.replace(row, seen=row.released) for row in rows]


def test_the_table_has_rows_for_every_stage_of_every_run():
    stages = {"source", "adaptation", "pseudo labels", "self_distillation", "tests", "predict"}
    stages |= {f"scoring {name}" for name in checks.ROW_NAMES}
    for run in RUNS:
        mine = [row for row in table.RELEASED if row.value(run) is not None]
        assert stages <= {row.stage for row in mine}
        assert len({(row.stage, row.what) for row in mine}) == len(mine)
        for stage in ("source", "adaptation", "self_distillation"):
            assert any(row.what.startswith("to the network") for row in mine if row.stage == stage)
    raw = {row.what.partition(",")[0] for row in table.RELEASED if row.value(table.CONVERSION) is not None}
    assert raw == set(inputs.SIZES) == {name for domains in table.DOMAINS.values() for name in domains}


def test_the_documentation_shows_a_rehearsal_without_differences():
    rows = json.loads(report.DOCS_ROWS.read_text())
    assert rows == report.compact(as_released())
    shown = report.DOCS.read_text().split(report.BEGIN)[1].split(report.END)[0]
    assert shown.strip() == report.markdown(rows).strip()


def test_equal_values_of_several_runs_are_one_line():
    rows = report.compact(as_released())
    jitter = [row for row in rows if row["stage"] == "self_distillation" and row["what"].endswith("jittered")]
    assert [(row["runs"], row["seen"] == "-") for row in jitter] == [("ResNet-101", False), ("VGG-16", True)]
    resized = [row["runs"] for row in rows if (row["stage"], row["what"]) == ("source", ROWS[0].what)]
    assert resized == ["GTA5", "SYNTHIA", "Cross-City"]
    assert report.name([RUNS[0], RUNS[3]], RUNS) == "GTA5 with ResNet-101, SYNTHIA with VGG-16"
    assert report.name(RUNS[:1], RUNS) == "GTA5 with ResNet-101"


@pytest.mark.parametrize("task", [gta5_to_cityscapes, synthia_to_cityscapes, cityscapes_to_crosscity])
def test_distilling_vgg16_jitters_nothing(task):
    for backbone, stage, strength in (
        ("vgg16", "self_distillation", 0.0),
        ("resnet101", "self_distillation", 0.5),
        ("vgg16", "adaptation", 0.5),
    ):
        config = task.get_config(f"backbone={backbone},stage={stage}")
        labelled = config.source if stage == "adaptation" else config.target
        assert (labelled.brightness, labelled.contrast, labelled.saturation) == (strength,) * 3
        assert labelled.hue == (0.2 if strength else 0.0)


@pytest.mark.parametrize("dataset", inputs.SIZES)
def test_raw_data_are_in_their_layouts_and_hold_every_id(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(inputs.SIZES, dataset, (64, 48))
    inputs.make_raw(dataset, tmp_path)
    splits = layouts.DATASETS[dataset](tmp_path, inputs.CITY)
    examples = [example for split in splits.values() for example in split]
    assert len(examples) == len(list(inputs.raw_files(dataset, tmp_path)))
    for example in examples:
        record = raw_files.read_record(dataset, ENCODINGS[dataset], example)
        assert (record.width, record.height) == (64, 48)
        held = set(np.flatnonzero(record.counts).tolist())
        assert held == (ENCODINGS[dataset].defined if example.label else set())
    if dataset == "synthia":
        assert examples[0].label.read_bytes()[24] == 16


def test_the_first_failure_ends_a_rehearsal():
    def fail():
        raise UserError("as meant")

    assert commands.side_by_side(2, [lambda i=i: i for i in range(5)]) == list(range(5))
    with pytest.raises(UserError, match="as meant"):
        commands.side_by_side(2, [lambda: 1, fail, lambda: 2])


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not made by this script"):
        commands.prepare(tmp_path)
    for _ in range(2):
        commands.prepare(tmp_path / "new")
        (tmp_path / "new" / "raw").mkdir()
        (tmp_path / "new" / "compiled").mkdir(exist_ok=True)
    commands.prepare(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"compiled", commands.MARKER}


def test_labels_that_differ_are_named():
    ours = np.zeros((10, 100), np.uint8)
    theirs = ours.copy()
    theirs[0, 0] = 1
    assert checks.agreement(ours, theirs, "both") == 0.999
    theirs[0, 1] = 1
    with pytest.raises(UserError, match=r"both are the same in 99\.8000% of the pixels"):
        checks.agreement(ours, theirs, "both")


def test_wrong_use_ends_with_one_line(tmp_path):
    assert "--tasks=gta6: choose from gta5_to_cityscapes" in command("scripts/rehearse.py", "--tasks=gta6", expect=1)
    error = command("scripts/rehearse.py", "--docs", "--backbones=vgg16", f"--out={tmp_path}/r", expect=1)
    assert "--docs needs all tasks and backbones" in error and not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_released_road_at_its_real_sizes(tmp_path):
    output = command("scripts/rehearse.py", f"--out={tmp_path}/r")
    handovers = json.loads((tmp_path / "r" / "handovers.json").read_text())
    assert handovers["rows"] == report.compact(as_released())
    assert all(row["released"] == row["seen"] for row in handovers["rows"])
    assert set(handovers["checks"]) == {"/".join(run) for run in RUNS}
    for values in handovers["checks"].values():
        shares = [value for key, value in values.items() if " as " in key]
        assert len(shares) == 4 and min(shares) >= checks.AGREEMENT
    for run in RUNS:
        assert {"source", "control", "adaptation", "self_distillation"} <= set(handovers["facts"][run[0]][run[1]])
    assert f"made in {tmp_path}/r" in output
