"""What belongs to the user stays: predictions, scores, reports and tables replace their own kind and nothing else."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, command_here, environment, one_error
from PIL import Image
from sklearn.metrics import confusion_matrix
from test_reliability import mounted
from test_report import make_workdir

from fada_jax import classes, documents, files, images, loading, predict, stored
from fada_jax.errors import UserError
from fada_jax.evaluation import class_center_distance as ccd
from fada_jax.evaluation import predictions, predictor, scoring
from fada_jax.reporting import ablation, figures, results
from fada_jax.reporting import page as report
from fada_jax.scripts import ablate
from fada_jax.scripts import ccd as ccd_command

CLASSES = classes.get_class_set("camvid11")


def pixelwise(batch, multi_scale=False):
    """Probabilities that depend on the pixel alone."""
    red = jnp.asarray(batch[..., :1], jnp.float32) / 255
    return jnp.concatenate([red, 1 - red, jnp.zeros((*red.shape[:3], 9))], -1)


SEGMENTER = predictor.Predictor(CLASSES, (64, 32), (1.0,), 0, "float32", pixelwise, pixelwise)


def picture(height=12, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def contents(folder):
    """Digests by name, of files alone."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def quick(monkeypatch):
    """Predicts without a network; returns the command that does so."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: SEGMENTER)
    return lambda *arguments: command_here("-m", "fada_jax.predict", "--workdir=W", *arguments)


# Predictions ---------------------------------------------------------------------------------------------------------


def test_predictions_are_written_again_and_are_no_inputs(quick, tmp_path):
    frames = tmp_path / "frames"
    save(frames / "a.png", picture())
    save(frames / "sub" / "b.jpg", picture(seed=1))
    status, out, errors = quick(f"--out={frames}", "--save_probabilities", "--save_confidence", str(frames))
    assert status == 0 and "2 image(s), 11 classes" in out, errors
    first = contents(frames)
    assert len(first) == 2 + 2 * 5
    # An unquoted glob of the shell hands predictions over one by one.
    for arguments in ([str(frames)], [str(frames / "**" / "*.*g")], sorted(map(str, frames.rglob("*.*g")))):
        out_folder = frames if len(arguments) == 1 and arguments == [str(frames)] else tmp_path / "again"
        status, out, errors = quick(f"--out={out_folder}", "--save_probabilities", "--save_confidence", *arguments)
        assert status == 0 and "2 image(s), 8 of earlier predictions left out" in out, (out, errors)
        assert contents(frames) == first
    np.testing.assert_array_equal(
        np.load(frames / "a_probabilities.npy"), np.asarray(pixelwise(picture()[None]))[0].astype(np.float32)
    )
    expected = np.where(picture()[..., 0] >= 128, 0, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(frames / "a_label.png")), expected)


def test_what_is_not_ours_is_not_replaced(quick, tmp_path):
    frames = tmp_path / "frames"
    for name in ("a", "b"):
        save(frames / f"{name}.png", picture())
    theirs = {
        "b_label.png": lambda p: save(p, np.zeros((12, 20), np.uint8)),
        "b_color.png": lambda p: p.write_text("notes"),
        "b_overlay.png": lambda p: p.symlink_to(frames / "nowhere.png"),
        "b_confidence.png": lambda p: save(p, picture(), pnginfo=None),
    }
    for name, make in theirs.items():
        make(frames / name)
        before = contents(frames)
        status, _, errors = quick(f"--out={frames}", "--save_confidence", str(frames / "a.png"), str(frames / "b.png"))
        assert status == 1 and f"{name} is there already and was not made by fada-jax" in one_error(errors)
        assert contents(frames) == before
        (frames / name).unlink()


def test_probabilities_are_ours_beside_a_label_of_their_size_alone(quick, tmp_path):
    image, out = save(tmp_path / "x.png", picture()), tmp_path / "out"
    run = (f"--out={out}", "--save_probabilities", str(image))
    assert quick(*run)[0] == quick(*run)[0] == 0
    path = out / "x_probabilities.npy"
    good = path.read_bytes()
    for theirs in (np.zeros((12, 20, 11)), np.zeros((20, 12, 11), np.float32), np.zeros((12, 20), np.float32)):
        np.save(path, theirs)
        assert "x_probabilities.npy is there already" in one_error(quick(*run)[2])
    for theirs in (b"", b"\x93NUMPY\x01\x00", b"text"):
        path.write_bytes(theirs)
        assert quick(*run)[0] == 1 and path.read_bytes() == theirs
    path.write_bytes(good)
    save(out / "x_label.png", np.zeros((12, 20), np.uint8))
    assert not predictions.are_our_probabilities(path)


def test_times_are_written_over_times_alone(quick, tmp_path):
    image, csv = save(tmp_path / "x.png", picture()), tmp_path / "t.csv"
    for _ in range(2):
        assert quick(f"--out={tmp_path / 'out'}", f"--timing={csv}", str(image))[0] == 0
    assert csv.read_text().splitlines()[0] == "image,width,height,seconds" and predict.is_timing(csv)
    csv.write_text("image,width\n")
    assert quick(f"--out={tmp_path / 'out'}", f"--timing={csv}", str(image))[0] == 1
    assert csv.read_text() == "image,width\n"


def test_a_damaged_body_ends_after_the_images_before_it_and_the_same_command_goes_on(quick, tmp_path):
    for name in "123":
        save(tmp_path / f"{name}.png", picture(40, 60))
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[:2000])
    out = tmp_path / "out"
    status, _, errors = quick(f"--out={out}", str(tmp_path))
    assert status == 1 and "2.png: not a readable image" in one_error(errors)
    assert sorted(contents(out)) == ["1_color.png", "1_label.png", "1_overlay.png"]
    assert quick(f"--out={out}", "--on_error=skip", f"{tmp_path}/[123].png")[0] == 0
    assert "3_label.png" in contents(out) and "2_label.png" not in contents(out)
    (tmp_path / "2.png").write_bytes(whole)
    (out / ".2_label.png.1.0.partial").write_bytes(b"left by a killed process")
    assert quick(f"--out={out}", f"{tmp_path}/[123].png")[0] == 0 and "2_label.png" in contents(out)
    (tmp_path / "2.png").write_bytes(whole[:2000])
    status, _, errors = quick(f"--out={out}", "--on_error=skip", str(tmp_path / "2.png"))
    assert status == 1 and "none of 1 images can be read" in one_error(errors)


def test_what_does_not_fit_into_memory_is_told_with_what_helps(quick, tmp_path, monkeypatch):
    image = save(tmp_path / "x.png", picture())
    for text, known in (
        ("INTERNAL: Error: Out of memory allocating 12844000000 bytes.", True),
        ("RESOURCE_EXHAUSTED: Failed to allocate", True),
        ("INVALID_ARGUMENT: a defect", False),
    ):

        def run(batch, multi_scale, text=text):
            raise jax.errors.JaxRuntimeError(text)

        poor = predictor.Predictor(CLASSES, (64, 32), (1.0,), 0, "float32", run, pixelwise)
        monkeypatch.setattr(loading, "load", lambda *_, poor=poor, **__: poor)
        if not known:
            with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
                quick(f"--out={tmp_path / 'out'}", str(image))
            continue
        status, _, errors = quick(f"--out={tmp_path / 'out'}", str(image))
        assert status == 1 and "x.png (20x12) does not fit into memory: cut it with --tile" in one_error(errors)
        assert "lower --tile" in one_error(quick(f"--out={tmp_path / 'out'}", "--tile=8x8", str(image))[2])


def test_a_full_disk_is_named_with_the_file(quick, tmp_path):
    with mounted(tmp_path / "small", "-o", "size=40k"):
        image = save(tmp_path / "x.png", picture(60, 80))
        status, _, errors = quick(f"--out={tmp_path / 'small'}", "--save_probabilities", str(image))
        message = one_error(errors)
        assert status == 1 and "small/x_" in message and "No space left on device" in message
        left = contents(tmp_path / "small")
        assert not [name for name in left if "partial" in name or name.endswith(".npy")]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(quick, tmp_path):
    image = save(tmp_path / "x.png", picture())
    with mounted(tmp_path / "fixed", "-o", "ro"):
        status, _, errors = quick(f"--out={tmp_path / 'fixed'}", str(image))
        assert status == 1 and "no permission, or a read-only file system" in one_error(errors)


@pytest.mark.parametrize("name", ["植物.png", "ß ü.png", "a\nb.png", "%s{x}.png", "-x.png", "x" * 100 + ".png"])
def test_names_of_every_kind(quick, tmp_path, name):
    save(tmp_path / "in" / name, picture())
    status, out, errors = quick(f"--out={tmp_path / 'out'}", str(tmp_path / "in"))
    assert status == 0 and "1 image(s)" in out, errors
    assert (tmp_path / "out" / name.replace(".png", "_label.png")).is_file()


def test_pictures_say_who_made_them_and_ordinary_ones_do_not(tmp_path):
    images.write_image(tmp_path / "a.png", picture())
    images.write_image(tmp_path / "b.png", picture(), prediction=True)
    save(tmp_path / "c.png", picture())
    for name, *expected in (("a", True, False), ("b", True, True), ("c", False, False)):
        path = tmp_path / f"{name}.png"
        assert [images.is_ours(path), images.is_prediction(path)] == expected
    assert Image.open(tmp_path / "b.png").info["Software"].startswith("fada-jax ")
    np.testing.assert_array_equal(images.read_image(tmp_path / "b.png"), picture())
    with pytest.raises(UserError, match="was not made by fada-jax"):
        images.write_image(tmp_path / "c.png", picture(), ours=images.is_ours)


def test_pictures_of_every_size_that_memory_holds_are_read_without_a_warning(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", picture())
    code = (
        "import sys; from PIL import Image; from fada_jax import images; Image.MAX_IMAGE_PIXELS = 150\n"
        "assert images.read_image(sys.argv[1]).shape == (12, 20, 3)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], env=environment(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    monkeypatch.setattr(images, "MAX_PIXELS", 239)
    for read in (images.read_image, images.check_image):
        with pytest.raises(UserError, match="20x12 are more than the 239 pixels that are read"):
            read(tmp_path / "x.png")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_file_is_never_opened(tmp_path, make):
    make(tmp_path / "x.png")
    for read in (images.read_image, images.check_image, SEGMENTER):
        with pytest.raises(UserError, match=r"x\.png: not a readable image"):
            read(tmp_path / "x.png")


# A segmenter's callers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"tile": tile}, "must be \\(width, height\\), whole numbers of at least 1") for tile in (
            32, "32x16", (32.5, 16), (1, 2, 3), (0, 4), (-1, 3), (), (True, 8), (float("nan"), 2), b"ab", 3.5)),
        *(({"overlap": overlap}, "must be a number from 0 to 0.9") for overlap in (
            float("nan"), 1, -0.1, "0.5", None, True)),
        *(({"multi_scale": value}, "must be True or False") for value in ("no", 1, None)),
    ],
)  # fmt: skip
def test_options_that_cannot_be_name_themselves(options, message):
    (name, value), *_ = options.items()
    for call in (SEGMENTER, SEGMENTER.probabilities, lambda x, **o: SEGMENTER.score([(x, x[..., 0] * 0)], **o)):
        with pytest.raises(ValueError, match=message) as raised:
            call(picture(), **options)
        assert str(raised.value).startswith(f"{name}={value!r}")


@pytest.mark.parametrize("tile", [(8, 8), [8, 8], np.array([8, 8]), (np.int64(8), 8), (10**9, 8)])
def test_options_of_every_integer_type_are_taken(tile):
    np.testing.assert_array_equal(SEGMENTER(picture(), tile=tile, overlap=np.float32(0.5)), SEGMENTER(picture()))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((12, 20), -1), "holds -1, which is no class of camvid11 \\(0 to 10\\): .* must be 255"),
        (np.full((12, 20), 33), "holds 33, which is no class"),
        (np.full((12, 20), 11, np.uint8), "holds 11, which is no class"),
        (np.full((12, 20), 255 + 256), "holds 511, which is no class"),
        (np.full((12, 20), 2**40), "holds 1099511627776"),
        (np.zeros((12, 20)), "must hold whole numbers \\(uint8\\), not float64"),
        (np.full((12, 20), np.nan), "not float64"),
        (np.zeros((12, 20), bool), "not bool"),
        (np.zeros((12, 21), int), r"label \[12, 21\] and image \[12, 20\] differ in size"),
        (np.zeros((1, 12, 20), int), "differ in size"),
        (np.zeros((12, 20, 3), np.uint8), "differ in size"),
        ("label.png", "must hold whole numbers"),
        (None, "must hold whole numbers"),
    ],
)
def test_labels_that_are_none_are_refused(label, message):
    with pytest.raises(ValueError, match=f"sample 1.*{message}|{message}"):
        SEGMENTER.score([(picture(), np.zeros((12, 20), np.uint8)), (picture(), label)])


def test_scores_count_images_of_batches_and_only_labelled_pixels():
    batch = np.stack([picture(seed=i) for i in range(3)])
    labels = np.random.default_rng(0).integers(0, 2, batch.shape[:3])
    labels[:, :4] = 255
    one_by_one = SEGMENTER.score(list(zip(batch, labels.tolist(), strict=True)))
    assert SEGMENTER.score([(batch[:2], labels[:2]), (batch[2], labels[2])]) == one_by_one
    assert one_by_one["num_images"] == 3
    seen = labels != 255
    counts = confusion_matrix(labels[seen], SEGMENTER(batch)[seen])
    assert one_by_one["accuracy"] == pytest.approx(100 * np.trace(counts) / counts.sum())
    nothing = SEGMENTER.score([(picture(), np.full((12, 20), 255))])
    assert (nothing["miou"], nothing["accuracy"], nothing["num_images"]) == (None, None, 1)
    no_pair = "sample 0 must be an image and its label"
    for samples, message in (([], "no sample"), ([picture()], no_pair), ([(1, 2, 3)], no_pair)):
        with pytest.raises(ValueError, match=message):
            SEGMENTER.score(samples)
    with pytest.raises(ValueError, match="lists of several lengths"):
        SEGMENTER([[1], [2, 3]])


# Scores --------------------------------------------------------------------------------------------------------------


def scored(step, miou=50.0):
    iou = dict.fromkeys(CLASSES.names, miou)
    return {
        "miou": miou, "iou": iou, "accuracy": 60.0, "num_images": 3, "class_set": "camvid11", "scored_at": "20x12",
        "confusion": [[1]], "multi_scale": False, "checkpoint_step": step, "dtype": "float32", "dataset": "camvid",
        "split": "val",
    }  # fmt: skip


@pytest.fixture
def quick_scores(monkeypatch, tmp_path):
    """Evaluates without a network; returns the command that does so, and its workdir with two checkpoints."""
    workdir = tmp_path / "w" / "source"
    (workdir / "checkpoints").mkdir(parents=True)

    def evaluate_stage(workdir, *, checkpoint, progress, **_):
        progress(3, 3)
        return scored(int(checkpoint) if checkpoint.isdigit() else 6, 40.0 + int(checkpoint == "3"))

    monkeypatch.setattr(scoring, "evaluate_stage", evaluate_stage)
    monkeypatch.setattr("fada_jax.stages.workdirs.stage_workdir", lambda path: workdir)
    monkeypatch.setattr("fada_jax.training.checkpoints.available_steps", lambda path: [3, 6])
    return lambda *arguments: command_here("-m", "fada_jax.evaluate", f"--workdir={workdir}", *arguments), workdir


def test_scores_and_their_table_lie_side_by_side_and_replace_their_own_kind(quick_scores, tmp_path):
    run, workdir = quick_scores
    for _ in range(2):
        status, _, errors = run("--checkpoint=all", f"--output={tmp_path / 's.json'}")
        assert status == 0, errors
    written = json.loads((tmp_path / "s.json").read_text())
    assert next(iter(written)) == "made_by" and written["made_by"].startswith("fada-jax ")
    assert documents.check(written, stored.Scores, "s.json").miou == 40.0
    assert (tmp_path / "s.csv").read_text().splitlines()[0].startswith("step,miou,miou_13,accuracy,")
    # Of an earlier version, which did not say who made it.
    (tmp_path / "old.json").write_text(json.dumps(scored(3)))
    assert run(f"--output={tmp_path / 'old.json'}")[0] == 0 and "made_by" in (tmp_path / "old.json").read_text()
    for text in ("{}", "[]", "mine", '{"miou": 3}', json.dumps({**scored(3), "miou": "x"})):
        (tmp_path / "other.json").write_text(text)
        status, _, errors = run(f"--output={tmp_path / 'other.json'}")
        assert status == 1 and "was not made by fada-jax" in one_error(errors)
        assert (tmp_path / "other.json").read_text() == text
    assert run("--checkpoint=best")[0] == 0
    assert json.loads((workdir / "evaluation.json").read_text())["checkpoint_step"] == 3


def test_a_read_only_workdir_is_scored(quick_scores, tmp_path, monkeypatch):
    run, workdir = quick_scores
    with mounted(workdir, "-o", "ro"):
        status, out, errors = run()
        assert status == 0 and "mIoU" in out and "not written: " in out and "evaluation.json cannot be written" in out
        assert "--output names another place" in out and not errors.startswith("error")
        status, out, _ = run(f"--output={tmp_path / 's.json'}")
        assert status == 0 and (tmp_path / "s.json").is_file()
        assert run(f"--output={workdir / 's.json'}")[0] == 1


def test_the_stage_of_a_recipe_that_is_read_is_said(quick_scores, tmp_path):
    _, workdir = quick_scores
    status, out, _ = command_here("-m", "fada_jax.evaluate", f"--workdir={workdir.parent}")
    assert status == 0 and f"reading stage source of {workdir.parent}" in out


def test_labels_without_a_class_are_no_score(monkeypatch):
    monkeypatch.setattr(scoring, "compiled_step", lambda *_: lambda count, variables, batch: (count[0], 1))
    config = {"eval": {"dataset": "camvid"}}
    model = type("Model", (), {"classes": CLASSES, "spec": None, "preprocessing": None, "config": config})
    batch = {"image": picture()[None], "label": np.full((1, 12, 20), 255, np.uint8), "mask": np.ones(1, bool)}
    with pytest.raises(UserError, match="no pixel of this split's labels has a class of camvid11"):
        scoring.evaluate(model, [batch], variables={})


# Reports and tables --------------------------------------------------------------------------------------------------


def test_a_page_replaces_a_page_alone_and_shows_names_as_they_are(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    values = json.loads((workdir / "results.json").read_text())
    names = ["植物", "ß", r"$\frac{$", "<script>alert(1)</script>", "_hidden", "a\nb"]
    for row in values["rows"]:
        row["iou"] = dict(zip([*names, *list(row["iou"])[len(names) :]], row["iou"].values(), strict=True))
    values["config"] = "<script>alert(1)</script>"
    del values["rows"][0]["accuracy"]
    (workdir / "results.json").write_text(json.dumps(values))
    by_class = {r"$\frac{$": 1.0, "sky": None}
    distances = {"stages": {r"$\frac{$": {"both": {"mean": None, "ccd": by_class}}}}
    (workdir / "ccd.json").write_text(json.dumps(distances))
    output = tmp_path / "r.html"
    for _ in range(2):
        command_line = ("scripts/report.py", f"--workdir={workdir}", f"--output={output}")
        status, _, errors = command_here(*command_line)
        assert status == 0, errors
    text = output.read_text(encoding="utf-8")
    assert report.is_page(output) and "植物" in text and "<script>alert" not in text
    output.write_text("<html>mine</html>")
    assert command_here(*command_line)[0] == 1 and output.read_text() == "<html>mine</html>"
    # A page of an earlier version has its title alone.
    output.write_text("<!DOCTYPE html>\n<title>fada-jax: run</title>\n")
    assert report.is_page(output)


def test_an_ascii_locale_changes_nothing(tmp_path):
    """The class names, the template and every output are UTF-8 whatever the locale."""
    workdir = make_workdir(tmp_path / "w")
    values = json.loads((workdir / "results.json").read_text())
    for row in values["rows"]:
        row["iou"] = {{"road": "ß", "sky": "植物"}.get(name, name): value for name, value in row["iou"].items()}
    (workdir / "results.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    code = (
        "import locale, sys, pathlib; from fada_jax import files; from fada_jax.reporting import page, results, paper\n"
        "assert locale.getpreferredencoding(False).upper() in ('ANSI_X3.4-1968', 'US-ASCII', 'ASCII')\n"
        "files.write_text(sys.argv[2], page.page([pathlib.Path(sys.argv[1])]), ours=page.is_page)\n"
        "results.write(sys.argv[3], {'\\u690d': 1}); assert paper.rows('gta5_to_cityscapes')\n"
    )
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = [sys.executable, "-c", code, str(workdir), str(tmp_path / "r.html"), str(tmp_path / "r.json")]
    done = subprocess.run(run, env={**environment(), **ascii_locale}, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "植物" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["植"] == 1


def test_a_log_line_without_losses_is_no_curve(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss_seg": 1, "x": "y"}\n\n{"step": 2, "loss": 1.0}\n{"step": 3}\n')
    assert report.read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "loss_seg": 1}]
    assert report.read_metrics(tmp_path / "no.jsonl") == []


def test_a_domain_of_one_class_has_no_mean_distance(tmp_path, monkeypatch):
    spec = type("Spec", (), {"num_classes": 11})
    model = type("Model", (), {"class_set": CLASSES, "spec": spec, "config": {}, "step": 3})
    one = ccd.class_moments(np.ones((4, 2)), np.zeros(4, int), 11)
    same = ccd.merge(one, ccd.class_moments(np.ones((4, 2)), np.ones(4, int), 11))  # Centres at one place: no distance.
    moments = iter([one, same] * 2)
    monkeypatch.setattr(ccd_command.checkpoints, "load_model", lambda stage: model)
    monkeypatch.setattr(ccd_command.checkpoints, "in_dtype", lambda model, dtype: model)
    monkeypatch.setattr(ccd_command.checkpoints, "available_steps", lambda stage: [3])
    domain = type("Domain", (), {"stream": staticmethod(lambda augment: None)})
    config = type("Config", (), {"data_dir": "", "source": domain, "eval": domain})
    monkeypatch.setattr(ccd_command.schema, "stored", lambda *_: config)
    monkeypatch.setattr(ccd_command.streams, "num_examples", lambda *_: 0)
    monkeypatch.setattr(ccd_command.ccd, "measure", lambda *_, **__: next(moments))
    for _ in range(2):  # The second replaces what the first wrote.
        status, out, errors = command_here(
            "scripts/ccd.py", f"--workdir={tmp_path}", str(tmp_path / "a"), f"--output={tmp_path / 'o'}"
        )
    assert status == 0 and "a: mean CCD both -, source -, target -" in out, errors
    values = documents.read(tmp_path / "o.json")
    documents.check(values, stored.Distances, "o.json")
    assert values["stages"]["a"]["source"]["mean"] is None
    assert results.is_ours(tmp_path / "o.json") and images.is_ours(tmp_path / "o.png")


def test_figures_replace_pictures_of_ours_alone(tmp_path):
    figure = figures.iou_bars({"x": {"road": 1.0}})
    for _ in range(2):
        figures.save(figure, tmp_path / "f.png", ours=images.is_ours)
    save(tmp_path / "g.png", picture())
    with pytest.raises(UserError, match=r"g\.png is there already"):
        figures.save(figure, tmp_path / "g.png", ours=images.is_ours)


def test_a_table_across_tasks_shows_rows_that_one_task_lacks():
    row = {"miou": 10.0, "iou": {"road": 10.0}}
    scores = {"a": {0: {"source_only": row, "oracle": row}}, "b": {0: {"source_only": row}}}
    text = ablation.across_tasks("components", scores)
    assert "| oracle (trained on target labels) | 10.0 | - |" in text


@pytest.mark.parametrize("change", ["rows", "classes", "star"])
def test_seeds_of_one_table_have_the_same_rows_and_classes(tmp_path, change):
    row = {"miou": 10.0, "iou": {"road": 10.0}}
    changes = {"rows": {}, "classes": {"iou": {"sky": 1.0}}, "star": {"miou_13": 1.0}}
    task = ablate.Task("c.py", {}, "gta5_to_cityscapes", tmp_path, "")
    made_by = {"path": "c.py", "overrides": {}, "split": ""}
    for seed, scores in ((0, {"source_only": row}), (1, {"source_only": row | changes[change], "adapted": row})):
        files.write_text(tmp_path / f"seed{seed}" / "clipping.json", json.dumps({"config": made_by, "scores": scores}))
    # Folders that are no seeds of ours.
    for name in ("seed1_backup", "seed²", "seeds"):
        files.write_text(tmp_path / name / "clipping.json", "mine")
    if change != "rows":
        values = json.loads((tmp_path / "seed1" / "clipping.json").read_text())
        del values["scores"]["adapted"]
        (tmp_path / "seed1" / "clipping.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"seed1/clipping\.json has other rows or classes than seed 0"):
        ablate.run_task("clipping", "clipping", task, [0])
    (tmp_path / "seed1" / "clipping.json").unlink()
    assert list(ablate.run_task("clipping", "clipping", task, [0])) == [0]


@pytest.mark.parametrize(
    "texts", [[], [""], ["²"], ["1", "1"], ["1", "01"], ["-1"], ["1.0"], ["9" * 5000], [" 1"], ["2147483648"]]
)
def test_seeds_that_are_none_are_refused(texts):
    with pytest.raises(UserError, match="--seeds="):
        ablate.seeds_of(texts)
    assert ablate.seeds_of(["0", "07", "2147483647"]) == [0, 7, 2147483647]
