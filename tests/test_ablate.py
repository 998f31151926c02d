"""Tables over seeds: what they say, against SciPy's own intervals; no training."""

import json

import numpy as np
import pytest
from commands import ROOT
from scipy import stats

from fada_jax.errors import UserError
from fada_jax.methods import SYSTEMS
from fada_jax.reporting import ablation, paper
from fada_jax.scripts import ablate
from fada_jax.stages import workdirs

ROWS = ("source_only", "control", "colour_matching_global", "colour_matching_image", "adapted", "oracle", "binary")


def seeds(count, rows=ROWS, star=False):
    """Scores of ``count`` seeds, one class of which never occurs."""
    rng = np.random.default_rng(0)
    result = {}
    for seed in range(count):
        values = {name: rng.uniform(20, 60, 2).tolist() for name in rows}
        result[seed] = {
            name: {"miou": float(np.mean(v)), "iou": {"road": v[0], "sky": v[1], "train": None}}
            | ({"miou_13": v[0]} if star else {})
            for name, v in values.items()
        }
    return result


def table_rows(text, section):
    lines = text.split("\n\n")[section].splitlines()
    return {line.split(" |")[0][2:]: [c.strip() for c in line.split("|")[2:-1]] for line in lines if "---" not in line}


def test_intervals_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    values, baseline = rng.normal(30, 2, 5), rng.normal(25, 2, 5)
    mean, half = ablation.difference(values, baseline)
    interval = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    # Shared luck of a seed does not widen the interval.
    assert ablation.difference(values + 10 * np.arange(5), values + 10 * np.arange(5) - 1) == pytest.approx((1, 0))
    assert np.isnan(ablation.difference([3.0], [1.0])[1])


def test_the_table_has_mean_spread_gains_and_the_papers_numbers():
    scores = seeds(3)
    text = ablation.markdown("components", "gta5_to_cityscapes", scores)
    rows, gains, classes = (table_rows(text, i) for i in range(3))
    adapted = [scores[s]["adapted"]["miou"] for s in range(3)]
    spread = f"{np.mean(adapted):.1f} ± {np.std(adapted, ddof=1):.1f}"
    assert rows["F-Adv"] == [spread, *(f"{v:.1f}" for v in adapted), "46.9"]
    assert rows["binary (global alignment)"][-1] == "39.4" and rows["oracle (trained on target labels)"][-1] == ""
    header = gains["gain, 95% interval"]
    assert header == [
        "over source only", "over control (lambda = 0, same extra steps)",
        "over colour matching, global (no training)", "over colour matching, per image (no training)",
        "over binary (global alignment)", "over F-Adv",
    ]  # fmt: skip
    assert gains["F-Adv"][-1] == ""
    for baseline, cell in zip(ablation.BASELINES[:-1], gains["F-Adv"][:-1], strict=True):
        other = [scores[s][baseline]["miou"] for s in range(3)]
        interval = stats.ttest_rel(adapted, other).confidence_interval(0.95)
        expected = f"{np.subtract(adapted, other).mean():+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
        assert cell == expected
    assert gains["source only"][0] == ""
    assert classes["train"] == ["-"] * len(ROWS) and len(classes) == 4


def test_a_single_seed_has_no_spread_and_synthia_its_second_mean():
    text = ablation.markdown("components", "synthia_to_cityscapes", seeds(1, star=True))
    rows = table_rows(text, 0)
    assert rows["synthia_to_cityscapes, components"] == ["mIoU", "mIoU* (13)", "seed 0", "paper"]
    assert "±" not in text and "[" not in text
    assert rows["F-Adv"][-1] == "" and rows["binary (global alignment)"][-1] == "35.4"


def test_table_5_has_a_column_for_each_source_domain():
    names = ("source_only", "binary", "hard", "fada")
    scores = {task: seeds(2, names) for task in ("gta5_to_cityscapes", "synthia_to_cityscapes")}
    rows = table_rows(ablation.across_tasks("knowledge", scores), 0)
    assert rows["knowledge"] == list(scores)
    assert [cell.split("(")[1] for cell in rows["hard labels"]] == ["paper 45.7)", "paper 40.8)"]
    assert [cell.split("(")[1] for cell in rows["soft labels (FADA)"]] == ["paper 46.9)", "paper 41.5)"]


def test_a_table_is_made_of_every_seed_that_is_finished(tmp_path, monkeypatch):
    """Seeds one at a time, as processes side by side run them; a finished one is not run again."""
    every, ran = seeds(2), []

    def run_seed(table, task, seed):
        ran.append(seed)
        return every[seed]

    monkeypatch.setattr(ablate, "run_seed", run_seed)
    task = ablate.Task("configs/c.py", {"seed": 0, "data_dir": "a", "crop": (1, 2)}, "gta5_to_cityscapes", tmp_path, "")
    ablate.run_task("components", "components", task, [1])
    assert (tmp_path / "components.csv").read_text().splitlines()[1].startswith("1,")
    moved = ablate.Task(task.path, {**task.overrides, "data_dir": "b"}, task.name, tmp_path, "")
    scores = ablate.run_task("components", "components", moved, [0, 1])
    assert ran == [1, 0] and list(scores) == [0, 1]
    assert len((tmp_path / "components.csv").read_text().splitlines()) == 3
    other = ablate.Task(task.path, {**task.overrides, "batch_size": 4}, task.name, tmp_path, "")
    with pytest.raises(UserError, match=r"seed0/components\.json was made by"):
        ablate.run_task("components", "components", other, [0])
    stored = json.loads((tmp_path / "seed1" / "components.json").read_text())
    del stored["scores"]["oracle"]
    (tmp_path / "seed1" / "components.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"seed1/components\.json has other rows or classes than seed 0"):
        ablate.run_task("components", "components", task, [0])


def test_a_variant_that_is_the_recipes_own_stage_shares_its_folder(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(ablate.run, "train", lambda config, folder: trained.append((folder.name, config)))
    monkeypatch.setattr(ablate.scoring, "evaluate_stage", lambda *_, **__: {"miou": 1.0, "iou": {}, "confusion": []})
    path = str(ROOT / "configs" / "gta5_to_cityscapes.py") + ":size=miniature"
    task = ablate.Task(path, {}, "gta5_to_cityscapes", tmp_path, "")
    for table in ("clipping", "lambda", "alignment", "distillation"):
        for name, variant in ablation.TABLES[table].items():
            rows = ablate.run_variant(task, name, variant, 7)
            assert rows[name] == {"miou": 1.0, "iou": {}} and (len(rows) == 2) == (table == "distillation")
            assert all(ablation.label(table, row) for row in rows)
    configs = dict(trained)
    assert sorted(configs) == sorted(
        ["clip_0.7", "clip_0.8", "clip_1.0", "lambda_x0.1", "lambda_x0.3", "lambda_x3", "lambda_x10", "binary",
         "output_space", "entropy", "adaptation", "self_distillation", "keep_1", "keep_0.8", "keep_0.3",
         "relative_0.5", "teacher_multi_scale", "student_from_adaptation"]
    )  # fmt: skip
    students = {name: config for name, config in configs.items() if config.stage == "self_distillation"}
    assert len(students) == 7
    assert {c.teacher_from for c in students.values()} == {str(tmp_path / "seed7" / "adaptation")}
    assert students["student_from_adaptation"].init_from == str(tmp_path / "seed7" / "adaptation")
    assert students["relative_0.5"].pseudo_labels.relative and students["keep_0.8"].pseudo_labels.keep == 0.8
    del configs["student_from_adaptation"]
    assert configs["lambda_x3"].lambda_adv == pytest.approx(3 * configs["clip_0.7"].lambda_adv)
    assert configs["clip_0.7"].knowledge.clip == 0.7
    assert {c.init_from for c in configs.values()} == {str(tmp_path / "seed7" / "source")}
    assert {c.seed for c in configs.values()} == {7} and configs["output_space"].method == "output_space"


def test_there_is_no_oracle_where_the_target_has_no_labels(tmp_path, monkeypatch, capsys):
    """Cross-City's training images have none."""
    trained = []
    monkeypatch.setattr(ablate.run, "train", lambda config, folder: trained.append(folder.name))
    monkeypatch.setattr(
        ablate.run_recipe, "run", lambda *_, **__: ([{"name": "source_only", "miou": 1.0, "iou": {}}], {})
    )
    monkeypatch.setattr(ablate.scoring, "evaluate_stage", lambda *_, **__: {"miou": 1.0, "iou": {}})
    path = str(ROOT / "configs" / "cityscapes_to_crosscity.py") + ":size=miniature,city=Rome"
    task = ablate.Task(path, {}, "cityscapes_to_crosscity_Rome", tmp_path, "")
    for labelled, rows in ((False, ["source_only", "binary"]), (True, ["source_only", "oracle", "binary"])):
        monkeypatch.setattr(ablate, "_labelled", lambda config, answer=labelled: answer)
        trained.clear()
        assert list(ablate.run_seed("components", task, 0)) == rows
        assert trained == rows[1:]
    assert "no oracle: crosscity/train has no labels" in capsys.readouterr().out


# All systems side by side ---------------------------------------------------------------------------------------------


@pytest.fixture
def systems(tmp_path, monkeypatch):
    """Runs rows of 'systems' without networks; returns the task, what was trained, and what was scored."""
    trained, scored = [], []

    def score(folder, data_dir, split, colour="", **_):
        scored.append((folder.parent.name, folder.name, colour))
        return {"miou": 10.0 + len(scored), "iou": {"road": 10.0, "train": None}}

    monkeypatch.setattr(ablate.run, "train", lambda config, folder: trained.append((folder.parent.name, folder.name)))
    monkeypatch.setattr(ablate.scoring, "evaluate_stage", score)
    monkeypatch.setattr(ablate, "_labelled", lambda config: True)
    path = str(ROOT / "configs" / "gta5_to_cityscapes.py") + ":size=miniature"
    return ablate.Task(path, {}, "gta5_to_cityscapes", tmp_path, ""), trained, scored


def run_rows(task, seeds, rows):
    return ablate.run_task("systems", "systems", task, seeds, ablate.rows_of("systems", rows))


def test_every_system_that_adapts_is_a_row():
    adapting = {name for name, system in SYSTEMS.items() if system.adapts or system.translates}
    assert adapting == set(ablation.TABLES["systems"]) >= {"binary", "hard", "fada", "output_space", "entropy"}
    assert ablation.SYSTEM_ROWS[0] == "source_only" and ablation.SYSTEM_ROWS[-1] == "oracle"
    assert set(ablation.SYSTEM_ROWS) - adapting == {
        "source_only", "control", "colour_matching_global", "colour_matching_image", "oracle",
    }  # fmt: skip
    for name, variant in ablation.TABLES["systems"].items():
        assert variant.method == name and variant.label
        printed = {row.method for task in paper.CLASS_SETS for row in paper.rows(task)}
        assert not variant.printed or variant.printed in printed


def test_rows_that_are_finished_are_kept_when_the_table_grows(systems):
    task, trained, scored = systems
    assert list(run_rows(task, [0], ["fada", "source_only"])[0]) == ["source_only", "fada"]
    assert set(trained) == {("seed0", "source"), ("seed0", "adaptation")} and len(scored) == 2
    before = {path: path.read_bytes() for path in task.workdir.rglob("*.json")}
    trained.clear()
    scores = run_rows(task, [0], ["colour_matching_image", "binary", "control", "fada", "oracle"])
    assert list(scores[0]) == ["source_only", "control", "colour_matching_image", "binary", "fada", "oracle"]
    assert set(trained) == {("seed0", name) for name in ("source", "control", "binary", "oracle")}
    assert scored[2:] == [
        ("seed0", "source", "image"), ("seed0", "binary", ""), ("seed0", "control", ""), ("seed0", "oracle", ""),
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in before} == before


def test_a_row_that_a_seed_lacks_is_a_gap(systems):
    """As processes side by side leave it while they run."""
    task, _, _ = systems
    run_rows(task, [0], ["source_only", "fada"])
    scores = run_rows(task, [1], ["source_only", "binary"])
    assert scores[0]["binary"] == {} and scores[1]["fada"] == {}
    text = (task.workdir / "systems.md").read_text()
    rows, gains, classes = (table_rows(text, i) for i in range(3))
    assert rows["soft labels (FADA, F-Adv)"] == ["12.0", "12.0", "-", "46.9"]
    assert rows["source only"] == ["12.0 ± 1.4", "11.0", "13.0", "36.8"]
    assert gains["soft labels (FADA, F-Adv)"] == ["+1.0", ""] and classes["road"][1] == "10.0"
    assert (task.workdir / "systems.csv").read_text().splitlines() == [
        "seed,source_only,binary,fada", "0,11.0,,12.0", "1,13.0,14.0,",
    ]  # fmt: skip
    summary = ablation.summary("systems", task.name, scores)
    assert summary["fada"]["seeds"] == {"0": 12.0} and summary["source_only"]["text"] == "12.0 ± 1.4"


def test_a_row_that_was_made_otherwise_is_no_row_of_this_table(systems):
    task, _, _ = systems
    run_rows(task, [0], ["fada"])
    path = task.workdir / "seed0" / "systems" / "fada.json"
    kept = json.loads(path.read_text())
    # The config file's own values have changed since.
    before = kept["config"]["trained"] | {"lambda_adv": 0.5}
    path.write_text(json.dumps({**kept, "config": {**kept["config"], "trained": before}}))
    with pytest.raises(UserError, match=r"fada\.json belongs to another config \(lambda_adv: 0\.5 there"):
        run_rows(task, [0], ["fada"])
    path.write_text(json.dumps({**kept, "config": {**kept["config"], "split": "train"}}))
    with pytest.raises(UserError, match=r"fada\.json was made by"):
        run_rows(task, [0], ["binary"])
    path.write_text("[]")
    with pytest.raises(UserError, match=r"fada\.json is no row of systems"):
        run_rows(task, [0], ["fada"])
    path.write_text(json.dumps({**kept, "scores": {"fada": {"miou": 1.0, "iou": {"sky": 1.0}}}}))
    with pytest.raises(UserError, match="have other classes"):
        run_rows(task, [0], ["binary"])


def test_rows_are_named():
    assert ablate.rows_of("systems", []) == list(ablation.SYSTEM_ROWS)
    assert ablate.rows_of("systems", ["fada", "binary", "fada"]) == ["fada", "binary"]
    assert ablate.rows_of("components", []) == list(ablation.SYSTEM_ROWS)
    with pytest.raises(UserError, match="--rows=fada,nope: 'nope' is none of source_only, control"):
        ablate.rows_of("systems", ["fada", "nope"])
    with pytest.raises(UserError, match="--table=components is scored as a whole"):
        ablate.rows_of("components", ["fada"])


def test_a_stage_in_the_making_is_waited_for(tmp_path, monkeypatch, capsys):
    """Another process holds its folder twice, then has trained it."""
    tried = []

    def train(config, folder):
        tried.append(folder)
        if len(tried) < 3:
            with workdirs.hold(folder), workdirs.hold(folder):
                pass

    monkeypatch.setattr(ablate.run, "train", train)
    monkeypatch.setattr(ablate, "WAIT", 0.0)
    ablate._train(None, tmp_path / "source")
    assert len(tried) == 3
    assert capsys.readouterr().out == f"waiting: another process is at work in {tmp_path / 'source'}\n"
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(ablate.run, "train", lambda config, folder: workdirs.hold(tmp_path / "file").__enter__())
    with pytest.raises(UserError, match="cannot be written"):  # Waiting would not help.
        ablate._train(None, tmp_path / "file")


def test_lambda_of_another_method_shares_the_workdir(tmp_path, monkeypatch):
    trained = {}
    monkeypatch.setattr(ablate.run, "train", lambda config, folder: trained.setdefault(folder.name, []).append(config))
    monkeypatch.setattr(ablate.scoring, "evaluate_stage", lambda *_, **__: {"miou": 1.0, "iou": {}})
    for method in ("fada", "entropy"):
        path = str(ROOT / "configs" / "gta5_to_cityscapes.py") + f":size=miniature,method={method}"
        task = ablate.Task(path, {}, "gta5_to_cityscapes", tmp_path, "train")
        for name, variant in ablation.TABLES["lambda"].items():
            ablate.run_variant(task, name, variant, 0)
    factors = ("0.1", "0.3", "3", "10")
    assert set(trained) == {"adaptation", "entropy"} | {
        f"{prefix}lambda_x{factor}" for prefix in ("", "entropy_") for factor in factors
    }
    configs = {name: configs[0] for name, configs in trained.items()}
    assert all(configs[f"entropy_lambda_x{factor}"].method == "entropy" for factor in factors)
    assert configs["entropy_lambda_x3"].lambda_adv == pytest.approx(3 * configs["entropy"].lambda_adv)
    # Its source stage is that of the other methods, whatever options it has.
    mine = ablate.Task(path.replace("entropy", "clan"), {"options.local": 10.0}, task.name, tmp_path, "train")
    other = ablate.Task(path.replace("entropy", "fada"), {}, task.name, tmp_path, "train")
    assert (
        ablate._source("lambda", mine, 0) == ablate._source("lambda", other, 0) == ablate._source("clipping", other, 0)
    )
    assert ablate._source("components", mine, 0).method == "clan"
    # The row of 'systems' is the same stage.
    systems = ablate.Task(path.replace("entropy", "fada"), {}, "gta5_to_cityscapes", tmp_path, "")
    ablate.run_variant(systems, "entropy", ablation.TABLES["systems"]["entropy"], 0)
    assert trained["entropy"][0] == trained["entropy"][1]


def test_the_papers_numbers_of_systems_name_their_network():
    cases = {
        ("gta5_to_cityscapes", "AdaptSegNet", paper.RESNET): "42.4",
        ("gta5_to_cityscapes", "AdaptSegNet", paper.VGG): "35.0",
        ("gta5_to_cityscapes", "FCNs in the wild", paper.RESNET): "27.1 (VGG-16)",
        ("synthia_to_cityscapes", "CLAN", paper.RESNET): "47.8 (13 classes)",
        ("synthia_to_cityscapes", "Baseline (feat. only)", paper.RESNET): "35.4",
        ("cityscapes_to_crosscity_Rome", "Cross-City", paper.RESNET): "42.9 (Dilation-Frontend)",
        ("cityscapes_to_crosscity_Rome", "AdaptSegNet", paper.RESNET): "53.8",
        ("cityscapes_to_crosscity_Tokyo", "Source DeepLab-v2", paper.RESNET): "42.8 (misprint)",
        ("gta5_to_cityscapes", "Cross-City", paper.RESNET): "",
        ("camvid_day_to_dusk", "CLAN", paper.RESNET): "",
    }
    for arguments, printed in cases.items():
        assert paper.printed(*arguments) == printed
    row = {"miou": 1.0, "iou": {"road": 1.0}}
    scores = {0: {"source_only": row, "binary": row, "fada": row}}
    for task, network, wanted in (
        ("cityscapes_to_crosscity_Rome", paper.RESNET, ["50.9", "", ""]),
        ("synthia_to_cityscapes", paper.RESNET, ["33.5", "", "41.5"]),
        ("gta5_to_cityscapes", paper.VGG, ["28.3", "", "46.9 (ResNet-101)"]),
    ):
        text = ablation.markdown("systems", task, scores, network)
        assert [cells[-1] for cells in list(table_rows(text, 0).values())[1:]] == wanted
