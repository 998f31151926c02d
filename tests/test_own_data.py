"""A user's own pair of domains: folders and a class map -> conversion -> a look -> training -> score -> prediction."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import raw_trees
from commands import ROOT, command
from PIL import Image

from fada_jax.input_pipeline import layouts
from fada_jax.training import checkpoints

EXAMPLE = ROOT / "examples" / "own_pair"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    label = raw_trees.ids(5, 72, 128, 5)
    raw_trees.folder(root / "rendered", "train", 4, label, (72, 128))
    raw_trees.folder(root / "photos", "train", 3, None, (64, 128))
    raw_trees.folder(root / "photos", "val", 2, label[:64], (64, 128))
    for name in ("rendered", "photos"):
        command(
            "scripts/convert_dataset.py", "--dataset=folder", f"--name={name}", f"--raw_dir={root}/{name}",
            f"--class_map={EXAMPLE}/classes.json", f"--data_dir={root}/data", "--workers=1",
        )  # fmt: skip
    return root / "data"


def test_own_data_train_and_evaluate_without_touching_the_package(data_dir, tmp_path):
    example = tmp_path / "example"
    shutil.copytree(EXAMPLE, example, ignore=shutil.ignore_patterns("__pycache__"))
    train = (
        "-m", "fada_jax.train", f"--config={example}/config.py:size=miniature", f"--workdir={tmp_path}/w",
        f"--config.data_dir={data_dir}", "--config.source.sampling=balanced", "--config.checkpoint_every=2",
    )  # fmt: skip
    command(*train, "--config.total_steps=2")
    # Another order of classes is another model.
    values = json.loads((example / "classes.json").read_text())
    (example / "classes.json").write_text(json.dumps({**values, "classes": values["classes"][::-1]}))
    assert "class_set: ['path', 'plants', 'sky'] there" in command(*train, "--config.total_steps=4", expect=1)
    # The checkpoint carries the classes; the example may go.
    shutil.rmtree(example)
    model = checkpoints.load_model(tmp_path / "w")
    assert model.class_set.names == ("path", "plants", "sky") and model.class_set.colors[0] == (128, 64, 128)
    command("-m", "fada_jax.evaluate", f"--workdir={tmp_path}/w", f"--output={tmp_path}/scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores["iou"]) == ["path", "plants", "sky"] and scores["class_set"] == "path3"
    Image.fromarray(raw_trees.picture(0, 64, 128)).save(tmp_path / "x.png")
    command("-m", "fada_jax.predict", f"--workdir={tmp_path}/w", f"--out={tmp_path}/p", tmp_path / "x.png")
    assert np.asarray(Image.open(tmp_path / "p" / "x_label.png")).max() <= 2


def test_inspection_prints_frequencies_and_writes_a_sheet(data_dir, tmp_path):
    inspect = ("scripts/inspect_dataset.py", f"--data_dir={data_dir}", f"--output={tmp_path}/sheet.png")
    output = command(*inspect, "--dataset=photos", "--images=2", "--width=128")
    assert "train: 3 images, unlabelled" in output and "val: 2 images" in output
    label = raw_trees.ids(5, 72, 128, 5)[:64]
    for name, ids in (("path", (1, 2)), ("plants", (3,)), ("sky", (4,))):
        pixels = 2 * int(np.isin(label, ids).sum())
        share = 100 * pixels / (2 * int((label > 0).sum()))
        line = next(line for line in output.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:] == [f"{pixels:,}", f"{share:.3f}%", "2"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet = np.asarray(sheet.convert("RGB"))
    # Third row, second column: the coloured label of the first labelled image, at twice its size.
    top, left = 20 + 2 * (128 + 6), 6 + (256 + 6)
    shown = sheet[top : top + 128 : 2, left : left + 256 : 2]
    assert (shown[label == 4] == (70, 130, 180)).all() and (shown[label == 0] == 0).all()
    assert "no split 'nope': one of train, val" in command(*inspect, "--dataset=photos", "--split=nope", expect=1)
    assert "convert_dataset.py" in command(*inspect, "--dataset=gta5", expect=1)
    assert "no labels for road" in command(*inspect, "--dataset=photos", "--class_set=cityscapes19", expect=1)
    assert "--class_set=x" in command(*inspect, "--dataset=photos", "--class_set=x", expect=1)


CAMVID = ROOT.parent / "shared" / "data" / "camvid"
ARRANGE = ROOT / "examples" / "camvid_as_own" / "arrange.sh"
# What the example calls the splits of --dataset=camvid.
ARRANGED = {
    "train_day": "day/train",
    "test_day": "day/test",
    "train_dusk": "dusk/train",
    "test_dusk": "dusk/val",
    "final_dusk": "dusk/final",
}


def test_camvid_is_arranged_by_the_splits_of_its_own_layout(tmp_path):
    camvid, out = tmp_path / "the camvid", tmp_path / "out"
    for folder, names in raw_trees.camvid_names().items():
        for target in (camvid / folder, camvid / f"{folder}annot"):
            target.mkdir(parents=True)
            for name in names:
                (target / f"{name}.png").touch()
    subprocess.run(["sh", ARRANGE, camvid, out], check=True)
    splits = layouts.camvid(camvid)
    assert {str(p.relative_to(out)) for p in out.glob("*/*")} == set(ARRANGED.values())
    for split, place in ARRANGED.items():
        images, labels = (
            {p.name: p.resolve() for p in (out / place / kind).glob("*")} for kind in ("images", "labels")
        )
        assert images == {e.image.name: e.image.resolve() for e in splits[split]}
        expected = {} if split == "train_dusk" else {e.label.name: e.label.resolve() for e in splits[split]}
        assert labels == expected and (out / place / "labels").is_dir() == bool(expected)


def test_camvid_is_arranged_without_the_frames_that_a_copy_lacks(tmp_path):
    for name in ("train/0006R0_f00930", "train/0001TP_006690", "test/0001TP_009450"):
        folder, stem = name.split("/")
        for target in (tmp_path / "in" / folder, tmp_path / "in" / f"{folder}annot"):
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{stem}.png").touch()
    arrange = ["sh", ARRANGE, tmp_path / "in", tmp_path / "out"]
    subprocess.run(arrange, check=True)
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*/*")}
    assert found == {"day/train", "dusk/train", "dusk/val"}
    (tmp_path / "in" / "test" / "test_00001.png").touch()
    result = subprocess.run(arrange, capture_output=True, text=True)
    expected = f"error: {tmp_path}/in/test/test_00001.png is no frame of test/ in CamVid's SegNet split"
    assert result.returncode == 1 and result.stderr.startswith(expected)
    shutil.rmtree(tmp_path / "in" / "trainannot")
    result = subprocess.run(arrange, capture_output=True, text=True)
    assert result.returncode == 1 and "/in/trainannot is not there: the first argument must be" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not in ../shared/data/camvid")
def test_camvid_trains_as_anybodys_own_data(tmp_path):
    example = ARRANGE.parent
    subprocess.run(["sh", ARRANGE, CAMVID, tmp_path / "raw"], check=True)
    counts = {"day": "train 305 images", "dusk": "train 62 images, val 31 images"}
    for name, expected in counts.items():
        output = command(
            "scripts/convert_dataset.py", "--dataset=folder", f"--name={name}", f"--raw_dir={tmp_path}/raw/{name}",
            f"--class_map={example}/classes.json", f"--data_dir={tmp_path}/data", "--workers=2", "--verify",
        )  # fmt: skip
        assert expected in output
    config = (f"--config={example}/config.py:size=miniature", f"--config.data_dir={tmp_path}/data")
    command("-m", "fada_jax.train", *config, f"--workdir={tmp_path}/w", "--config.total_steps=30")
    command("-m", "fada_jax.evaluate", f"--workdir={tmp_path}/w", f"--output={tmp_path}/scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["num_images"] == 31 and scores["class_set"] == "streets7" and scores["scored_at"] == "480x360"
