"""Raw layouts -> TFRecords -> batches, pixel for pixel against direct reading, and every bad input."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from PIL import Image

from fada_jax.classes import IGNORE, get_class_set, label_table
from fada_jax.errors import UserError
from input_pipeline import builders, pipeline, raw_datasets

ROOT = Path(__file__).parents[1]
CAMVID = ROOT.parent / "shared" / "data" / "camvid"


def convert(dataset, raw, data, **options):
    return builders.convert(builders.Conversion(dataset, raw, **options), data)


def read(data, stream, class_set):
    """All examples of a split by name: image and label, without padding."""
    found = {}
    for batch in pipeline.eval_batches(data, stream, class_set=class_set, batch_size=2):
        for i in np.flatnonzero(batch["mask"]):
            found[batch["name"][i]] = (batch["image"][i], batch["label"][i] if "label" in batch else None)
    return found


CASES = [
    ("gta5", "", "train", "cityscapes19", (64, 36), 35, 6),
    ("synthia", "", "train", "synthia16", (64, 38), 23, 3),
    ("cityscapes", "", "train", "cityscapes19", (64, 32), 34, 6),
    ("cityscapes", "", "val", "synthia16", (64, 32), 34, 3),
    ("crosscity", "Rome", "test", "crosscity13", (64, 32), 34, 2),
]


@pytest.mark.parametrize(("dataset", "city", "split", "class_set", "size", "count", "examples"), CASES)
def test_labels_and_images_arrive_unchanged(dataset, city, split, class_set, size, count, examples, tmp_path):
    getattr(raw_trees, dataset)(tmp_path / "raw")
    _, counts, errors = convert(dataset, tmp_path / "raw", tmp_path / "data", city=city, workers=2)
    assert counts[split] == examples and not errors
    found = read(tmp_path / "data", pipeline.Stream(dataset, split, size, city=city), class_set)
    assert len(found) == examples
    # Class by name, through the paper's tables: independent of the lookup that the pipeline uses.
    names = get_class_set(class_set).names
    meaning = raw_datasets.ENCODINGS[dataset].ids
    for name, (image, label) in found.items():
        i = int(name.split("_")[1]) if "_" in name else int(name)
        np.testing.assert_array_equal(image, raw_trees.picture(i, size[1], size[0]))
        raw = raw_trees.ids(i, size[1], size[0], count)
        for value in np.unique(raw):
            expected = names.index(meaning[value]) if meaning.get(value) in names else IGNORE
            assert (label[raw == value] == expected).all()
    assert builders.verify(builders.folder(tmp_path / "data", dataset, city))[split] == examples


def test_class_maps_of_the_released_code():
    cityscapes = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                  27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    synthia = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12, 19: 13, 12: 14,
               11: 15}  # fmt: skip
    for dataset, class_set, expected in (
        ("gta5", "cityscapes19", cityscapes),
        ("cityscapes", "cityscapes19", cityscapes),
        ("synthia", "synthia16", synthia),
        ("camvid", "camvid11", {i: i for i in range(11)}),
    ):
        table = label_table(dataset, class_set)
        assert {int(i): int(table[i]) for i in np.flatnonzero(table != IGNORE)} == expected
    order = [cityscapes[i] for i in np.flatnonzero(label_table("crosscity", "crosscity13") != IGNORE)]
    assert order == [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]


def test_unlabelled_images_and_dummy_test_labels_carry_no_labels(tmp_path):
    raw_trees.cityscapes(tmp_path / "c")
    convert("cityscapes", tmp_path / "c", tmp_path / "data")
    raw_trees.crosscity(tmp_path / "x")
    convert("crosscity", tmp_path / "x", tmp_path / "data", city="Rome")
    for stream, count in (
        (pipeline.Stream("cityscapes", "test", (64, 32)), 3),
        (pipeline.Stream("crosscity", "train", (64, 32), city="Rome"), 3),
    ):
        with pytest.raises(UserError, match="has no labels"):
            read(tmp_path / "data", stream, "crosscity13")
        unlabelled = pipeline.dataclasses.replace(stream, labels=False)
        assert len(read(tmp_path / "data", unlabelled, "crosscity13")) == count


def test_stored_resize_equals_pillow(tmp_path):
    raw_trees.gta5(tmp_path / "raw", 2)
    convert("gta5", tmp_path / "raw", tmp_path / "data", resize=(32, 18))
    found = read(tmp_path / "data", pipeline.Stream("gta5", "train", (32, 18)), "cityscapes19")
    raw = Image.fromarray(raw_trees.picture(1, 36, 64))
    np.testing.assert_array_equal(found["00001"][0], raw.resize((32, 18), Image.Resampling.BICUBIC))
    label = Image.fromarray(raw_trees.ids(1, 36, 64, 35)).resize((32, 18), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found["00001"][1], label_table("gta5", "cityscapes19")[np.asarray(label)])


def break_missing(raw):
    (raw / "labels" / "00002.png").unlink()
    return "labels/00002.png is missing"


def break_size(raw):
    Image.fromarray(raw_trees.ids(2, 30, 64, 35)).save(raw / "labels" / "00002.png")
    return "00002.png is 64x30, its image 64x36"


def break_truncated(raw):
    path = raw / "images" / "00002.png"
    path.write_bytes(path.read_bytes()[:200])
    return "images/00002.png is not a readable image"


def break_empty(raw):
    (raw / "images" / "00002.png").write_bytes(b"")
    return "images/00002.png is not a readable image"


def break_ids(raw):
    Image.fromarray(np.full((36, 64), 77, np.uint8)).save(raw / "labels" / "00002.png")
    return "ids that gta5 does not define: [77]"


def break_colour(raw):
    Image.fromarray(raw_trees.picture(2, 36, 64)).save(raw / "labels" / "00002.png")
    return "is a colour picture"


@pytest.mark.parametrize(
    "damage",
    [break_missing, break_size, break_truncated, break_empty, break_ids, break_colour],
    ids=lambda f: f.__name__,
)
def test_bad_files_fail_or_are_skipped_and_the_old_data_set_stays(damage, tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw")
    root, _, _ = convert("gta5", raw, tmp_path / "data")
    before = {p.name: p.read_bytes() for p in root.iterdir()}
    expected = damage(raw)
    with pytest.raises(UserError) as error:
        convert("gta5", raw, tmp_path / "data")
    assert expected in str(error.value)
    assert expected in (tmp_path / "data" / "gta5_errors.txt").read_text()
    assert {p.name: p.read_bytes() for p in root.iterdir()} == before
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["gta5", "gta5_errors.txt"]
    _, counts, errors = convert("gta5", raw, tmp_path / "data", skip_errors=True)
    assert counts == {"train": 5} and len(errors) == 1
    assert "00002" not in read(tmp_path / "data", pipeline.Stream("gta5", "train", (64, 36)), "cityscapes19")


def test_the_command_reports_wrong_folders_in_one_line(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    cases = [
        (raw / "images", "must be the folder that holds images/ and labels/"),
        (tmp_path / "empty", "holds no images"),
        (tmp_path / "nowhere", "no such folder"),
    ]
    for folder, expected in cases:
        result = subprocess.run(
            [sys.executable, "scripts/convert_dataset.py", "--dataset=gta5", f"--raw_dir={folder}",
             f"--data_dir={tmp_path}/data"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert result.returncode == 1 and len(errors) == 1 and expected in errors[0], result.stderr
    assert not (tmp_path / "data" / "gta5").exists()


def test_damaged_records_are_named(tmp_path):
    raw_trees.gta5(tmp_path / "raw")
    root, _, _ = convert("gta5", tmp_path / "raw", tmp_path / "data")
    shard = next(root.glob("*.tfrecord*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"{shard.name}: record \d is damaged"):
        builders.verify(root)
    with pytest.raises(UserError, match=rf"{shard.name}: record \d is damaged"):
        read(tmp_path / "data", pipeline.Stream("gta5", "train", (64, 36)), "cityscapes19")


def test_a_missing_data_set_names_the_command_that_makes_it(tmp_path):
    stream = pipeline.Stream("gta5", "train", (64, 36))
    with pytest.raises(UserError, match=r"convert_dataset.py --dataset=gta5"):
        pipeline.num_examples(tmp_path, stream)
    raw_trees.gta5(tmp_path / "raw")
    convert("gta5", tmp_path / "raw", tmp_path)
    with pytest.raises(UserError, match="no split 'val': one of train"):
        pipeline.num_examples(tmp_path, pipeline.dataclasses.replace(stream, split="val"))
    with pytest.raises(UserError, match="camvid11"):
        read(tmp_path, stream, "camvid11")
    shutil.rmtree(tmp_path / "raw")
    assert pipeline.num_examples(tmp_path, stream) == 6


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not in ../shared/data/camvid")
def test_camvid_converts(tmp_path):
    _, counts, _ = convert("camvid", CAMVID, tmp_path, workers=2)
    assert counts == {"train_day": 305, "train_dusk": 62, "val_day": 51, "test_dusk": 31}
    found = read(tmp_path, pipeline.Stream("camvid", "test_dusk", (480, 360)), "camvid11")
    name = sorted(found)[7]
    np.testing.assert_array_equal(
        found[name][0], np.asarray(Image.open(CAMVID / "test" / f"{name}.png").convert("RGB"))
    )
    raw = np.asarray(Image.open(CAMVID / "testannot" / f"{name}.png"))
    np.testing.assert_array_equal(found[name][1], np.where(raw == 11, 255, raw))
