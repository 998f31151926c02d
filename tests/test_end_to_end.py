"""The whole road as users run it, at a few steps: raw images -> TFRecords -> three stages -> table; and its errors."""

import json
import shutil

import jax
import numpy as np
import pytest
from commands import command
from PIL import Image

from fada_jax.classes import get_class_set
from fada_jax.evaluation import metrics
from fada_jax.training import checkpoints

CONFIG = "configs/gta5_to_cityscapes.py:size=miniature"


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Commands of this module share what they compile, and leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    command(
        "scripts/make_miniature.py", f"--out={root}/raw", "--datasets=gta5,cityscapes", "--source_images=24",
        "--target_images=16", "--val_images=12", "--workers=1",
    )  # fmt: skip
    for dataset in ("gta5", "cityscapes"):
        command(
            "scripts/convert_dataset.py", f"--dataset={dataset}", f"--raw_dir={root}/raw/{dataset}",
            f"--data_dir={root}/data", "--workers=1",
        )  # fmt: skip
    return root / "data"


@pytest.fixture(scope="module")
def recipe(data_dir, tmp_path_factory):
    """A recipe's workdir, made by the ablation of its components, and the command that goes on with it."""
    root = tmp_path_factory.mktemp("ablation")
    options = (
        f"--config={CONFIG}", f"--config.data_dir={data_dir}", "--config.total_steps=6", "--config.checkpoint_every=3",
        "--config.log_every=2", "--config.pseudo_labels.keep=0.8",
    )  # fmt: skip
    output = command("scripts/ablate.py", *options, f"--workdir={root}", "--seeds=0")
    return root / "seed0", output, ("scripts/run_recipe.py", *options, f"--workdir={root}/seed0", "--config.seed=0")


def test_an_ablation_puts_its_rows_beside_the_papers(recipe):
    workdir, output, _ = recipe
    table = (workdir.parent / "components.md").read_text()
    assert table in output
    lines = table.split("\n\n")[0].splitlines()[2:]
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines}
    scores = {row["name"]: row["miou"] for row in json.loads((workdir / "results.json").read_text())["rows"]}
    assert rows["F-Adv"] == [f"{scores['adapted']:.1f}"] * 2 + ["46.9"]
    assert rows["binary (global alignment)"][-1] == "39.4" and len(rows) == 10
    assert f"| F-Adv | {scores['adapted'] - scores['source_only']:+.1f} |" in table
    header, values = (workdir.parent / "components.csv").read_text().splitlines()
    assert header.startswith("seed,source_only,") and values.startswith("0,")


def test_the_recipe_writes_what_scripts_read(recipe):
    workdir, _, _ = recipe
    results = json.loads((workdir / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == [
        "source_only", "control", "colour_matching", "adapted", "self_distilled", "self_distilled_multi_scale",
    ]  # fmt: skip
    assert results["seed"] == 0 and "gta5_to_cityscapes" in results["config"]
    for row in results["rows"]:
        present = [iou for iou in row["iou"].values() if iou is not None]
        assert row["miou"] == pytest.approx(np.mean(present))
        assert (row["num_images"], row["class_set"], row["scored_at"]) == (12, "cityscapes19", "128x64")
    confusions = json.loads((workdir / "confusion.json").read_text())
    for row in results["rows"]:
        own = metrics.scores(np.array(confusions[row["name"]]), get_class_set("cityscapes19"))
        assert (own["iou"], own["miou"]) == (row["iou"], row["miou"])
    assert "F-Adv + SD + MST" in (workdir / "results.md").read_text()
    with Image.open(workdir / "panel.png") as panel:
        assert panel.width > 4 * 128
    for name in ("source", "control", "adaptation", "self_distillation"):
        assert checkpoints.available_steps(workdir / name) == [3, 6]
        logged = [json.loads(line)["step"] for line in (workdir / name / "metrics.jsonl").read_text().splitlines()]
        assert logged == [2, 4, 6]
        assert list((workdir / name).glob("events*"))


def test_class_center_distance_and_report_of_a_recipe(recipe, tmp_path):
    workdir, _, _ = recipe
    output = command(
        "scripts/ccd.py", f"--workdir={workdir}", "--images=6", "--per_class=3", f"--output={tmp_path}/ccd"
    )
    stages = json.loads((tmp_path / "ccd.json").read_text())["stages"]
    assert list(stages) == ["source", "binary", "adaptation", "self_distillation"]
    for name, stage in stages.items():
        counts = {part: stage[part]["features"] for part in ("source", "target", "both")}
        assert all(counts["both"][k] == counts["source"][k] + counts["target"][k] <= 2 * 6 * 3 for k in counts["both"])
        values = [v for v in stage["both"]["ccd"].values() if v is not None]
        assert stage["both"]["mean"] == pytest.approx(np.mean(values)) and min(values) > 0
        assert f"{name}: mean CCD both {stage['both']['mean']:.3f}" in output
        assert counts == {part: stages["source"][part]["features"] for part in counts}  # The same pixels for all.
    with Image.open(tmp_path / "ccd.png") as figure:
        assert figure.width > 600
    command("scripts/report.py", f"--workdir={workdir}", f"--output={tmp_path}/report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 4 * 4 and "FADA-MST (ResNet-101)" in page


def test_a_finished_recipe_trains_nothing_again(recipe):
    workdir, _, arguments = recipe
    before = (workdir / "source" / "checkpoints" / "6" / "_CHECKPOINT_METADATA").stat().st_mtime_ns
    table = (workdir / "results.md").read_text()
    output = command(*arguments)
    assert "source: finished, 6 steps" in output and str(workdir / "self_distillation") in output
    assert (workdir / "source" / "checkpoints" / "6" / "_CHECKPOINT_METADATA").stat().st_mtime_ns == before
    assert (workdir / "results.md").read_text() == table


def test_resumed_training_is_bit_identical(recipe, data_dir, tmp_path):
    """A stage that loses its last checkpoint and goes on ends where the undisturbed one did."""
    workdir, _, _ = recipe
    arguments = (
        "-m", "fada_jax.train", f"--config={CONFIG},stage=adaptation", f"--workdir={tmp_path}/w",
        f"--config.data_dir={data_dir}", "--config.total_steps=6", "--config.checkpoint_every=3",
        "--config.log_every=2", f"--config.init_from={workdir}/source",
    )  # fmt: skip
    command(*arguments)
    whole = checkpoints.load_model(tmp_path / "w")
    undisturbed = checkpoints.load_model(workdir / "adaptation")

    shutil.rmtree(tmp_path / "w" / "checkpoints" / "6")
    command(*arguments)
    resumed = checkpoints.load_model(tmp_path / "w")
    assert resumed.step == 6
    for other in (whole, undisturbed):
        for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_array_equal(a, b)
    logged = [json.loads(line)["step"] for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [2, 4, 6]


def test_compiled_as_for_users_the_same_run_gives_the_same_bits(data_dir, tmp_path, monkeypatch):
    """Other tests compile with less optimisation, and load what others have compiled."""
    arguments = (
        "-m", "fada_jax.train", f"--config={CONFIG}", f"--config.data_dir={data_dir}", "--config.total_steps=3",
        "--config.model.widths=(8,8,8,8)", "--config.model.stem_width=8", "--config.source.size=(48,32)",
    )  # fmt: skip
    models = []
    for name in ("one", "two"):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / name / "compiled"))
        command(*arguments, f"--workdir={tmp_path}/{name}/w", optimised=True)
        models.append(checkpoints.load_model(tmp_path / name / "w"))
    assert models[0].step == 3
    for a, b in zip(*(jax.tree.leaves(model.params) for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluate_agrees_with_the_recipe_and_scores_all_checkpoints(recipe, tmp_path):
    workdir, _, _ = recipe
    output = command(
        "-m", "fada_jax.evaluate", f"--workdir={workdir}/adaptation", "--checkpoint=all",
        f"--output={tmp_path}/scores.json",
    )  # fmt: skip
    scores = json.loads((tmp_path / "scores.json").read_text())
    row = json.loads((workdir / "results.json").read_text())["rows"][3]
    assert (scores["miou"], scores["checkpoint_step"], scores["multi_scale"]) == (row["miou"], 6, False)
    assert [line.split(",")[0] for line in (tmp_path / "scores.csv").read_text().splitlines()] == ["step", "3", "6"]
    assert "128x64" in output
    # A recipe's workdir stands for its last stage.
    output = command("-m", "fada_jax.evaluate", f"--workdir={workdir}", "--multi_scale", "--checkpoint=best")
    assert str(workdir / "self_distillation") in output and "multi-scale" in output


def test_predict_writes_labels_at_the_images_own_size(recipe, tmp_path):
    workdir, _, _ = recipe
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (45, 77, 3), dtype=np.uint8)).save(tmp_path / "street.png")
    Image.fromarray(rng.integers(0, 256, (64, 128), dtype=np.uint8)).save(tmp_path / "grey.jpg")
    command(
        "-m", "fada_jax.predict", f"--workdir={workdir}", f"--out={tmp_path}/out", "--save_probabilities",
        tmp_path / "street.png", tmp_path / "grey.jpg",
    )  # fmt: skip
    probabilities = np.load(tmp_path / "out" / "street_probabilities.npy")
    assert probabilities.shape == (45, 77, 19) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    label = np.asarray(Image.open(tmp_path / "out" / "street_label.png"))
    np.testing.assert_array_equal(label, probabilities.argmax(-1))
    assert np.asarray(Image.open(tmp_path / "out" / "grey_overlay.png")).shape == (64, 128, 3)
    assert np.asarray(Image.open(tmp_path / "out" / "grey_color.png")).shape == (64, 128, 3)


@pytest.mark.slow
def test_wrong_use_ends_with_one_clear_line(recipe, data_dir, tmp_path):
    workdir, _, _ = recipe
    train = ("-m", "fada_jax.train", f"--workdir={tmp_path}/w", f"--config.data_dir={data_dir}")
    adversarial = f"--config={CONFIG},stage=adaptation"
    nowhere = tmp_path / "nowhere"
    cases = [
        ((*train[:3], f"--config={CONFIG}", f"--config.data_dir={nowhere}"), 1, "convert_dataset.py"),
        ((*train, adversarial, f"--config.init_from={nowhere}"), 1, f"config.init_from: no checkpoint in {nowhere}"),
        ((*train, f"--config={CONFIG},stage=self_distillation"), 1, "config.teacher_from is empty"),
        ((*train, f"--config={CONFIG}", "--config.sead=1"), 2, "sead"),
        ((*train, f"--config={CONFIG},stages=source"), 2, "stages=source"),
        (
            (*train, "--config=configs/synthia_to_cityscapes.py:size=miniature,stage=adaptation",
             "--config.source.dataset=cityscapes", f"--config.init_from={workdir}/source"),
            1, "its class set is 'cityscapes19', this config's is 'synthia16'",
        ),
        ((*train, adversarial, f"--config.init_from={workdir}/source", "--config.model.widths=(8,8,8,8)"), 1, "widths"),
        ((*train, f"--config={CONFIG}", "--config.class_set=camvid11"), 1, "camvid11"),
        (
            ("-m", "fada_jax.train", f"--workdir={workdir}/source", f"--config.data_dir={data_dir}",
             f"--config={CONFIG}", "--config.total_steps=9", "--config.seed=5"),
            1, "seed: 0 there, 5 now",
        ),
        ((*train, f"--config={CONFIG}", "--config.mesh.fsdp=3"), 1, "config.mesh: fsdp=3 times spatial=1 must divide"),
        ((*train, f"--config={CONFIG}", "--config.accumulate_steps=3"), 1, "config.accumulate_steps=3"),
        ((*train, f"--config={CONFIG}", "--num_processes=2"), 1, "need --coordinator=HOST:PORT"),
        (("-m", "fada_jax.evaluate", f"--workdir={nowhere}"), 1, "no checkpoint"),
        (("-m", "fada_jax.evaluate", f"--workdir={workdir}", "--checkpoint=4"), 1, "checkpoint '4'"),
        (("-m", "fada_jax.evaluate", f"--workdir={workdir}", "--split=nope"), 1, "nope"),
        (("-m", "fada_jax.predict", f"--workdir={workdir}", f"--out={tmp_path}/o", nowhere), 1, str(nowhere)),
        (("-m", "fada_jax.predict", f"--workdir={workdir}", f"--out={tmp_path}/o"), 1, "no image given"),
    ]  # fmt: skip
    for arguments, status, expected in cases:
        assert expected in command(*arguments, expect=status)
    assert not (tmp_path / "w").exists() and not (tmp_path / "o").exists()


def test_a_dry_run_prints_shapes_sharding_and_cost(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    output = command(
        "-m", "fada_jax.train", f"--config={CONFIG},stage=adaptation", "--dry_run", "--config.mesh.fsdp=2",
        "--config.data_dir=nowhere",
    )  # fmt: skip
    assert (
        "source image: uint8[4, 72, 128, 3]" in output
        and "target discriminator logits: float32[4, 16, 32, 38]" in output
    )
    assert "4 cpu device(s): data 2, fsdp 2, spatial 1" in output
    kernel = "generator/params/feature_extractor/layer4_0/conv2/kernel: [3, 3, 64, 64]"
    assert any(kernel in line and "fsdp" in line for line in output.splitlines())
    assert "TFLOP" in output and "GiB at its peak" in output


def test_a_damaged_checkpoint_is_named(recipe, tmp_path):
    workdir, _, _ = recipe
    shutil.copytree(workdir / "source", tmp_path / "w")
    for path in (tmp_path / "w" / "checkpoints" / "6" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    error = command("-m", "fada_jax.evaluate", f"--workdir={tmp_path}/w", expect=1)
    assert "checkpoints/6 is damaged (model/" in error and "choose another (3)" in error
