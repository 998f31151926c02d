"""Raw layouts -> TFRecords -> batches, pixel for pixel against direct reading, and every bad input."""

import dataclasses
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import raw_trees
import tensorflow as tf
from commands import ROOT, command, command_here, environment, one_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fada_jax.classes import ENCODINGS, IGNORE, get_class_set, label_table, read_class_map
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, indexes, layouts, raw_files, records, streams
from fada_jax.input_pipeline.stream import Stream

CAMVID = ROOT.parent / "shared" / "data" / "camvid"


def convert(dataset, raw, data, **options):
    return conversion.convert(conversion.Conversion(dataset, raw, **options), data)


def read(data, stream, class_set):
    """All examples of a split by name: image and label, without padding."""
    found = {}
    for batch in streams.eval_batches(data, stream, class_set=get_class_set(class_set), batch_size=2):
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
    found = read(tmp_path / "data", Stream(dataset, split, size, city=city), class_set)
    assert len(found) == examples
    # Class by name, through the paper's tables: independent of the lookup that the pipeline uses.
    names = get_class_set(class_set).names
    meaning = ENCODINGS[dataset].ids
    for name, (image, label) in found.items():
        i = int(name.split("_")[1]) if "_" in name else int(name)
        np.testing.assert_array_equal(image, raw_trees.picture(i, size[1], size[0]))
        raw = raw_trees.ids(i, size[1], size[0], count)
        for value in np.unique(raw):
            expected = names.index(meaning[value]) if meaning.get(value) in names else IGNORE
            assert (label[raw == value] == expected).all()
    assert records.verify(records.folder(tmp_path / "data", dataset, city))[split] == examples


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
        table = label_table(dataset, get_class_set(class_set))
        assert {int(i): int(table[i]) for i in np.flatnonzero(table != IGNORE)} == expected
    order = [cityscapes[i] for i in np.flatnonzero(label_table("crosscity", get_class_set("crosscity13")) != IGNORE)]
    assert order == [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]


def label16(seed, channels, size=(37, 29)):
    """uint16 [height, width, channels] whose first channel holds ids."""
    array = np.random.default_rng(seed).integers(0, 65536, (*size, channels), dtype=np.uint16)
    array[..., 0] = raw_trees.ids(seed, *size, 256)
    return array


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_labels_are_read_by_their_first_channel(channels, interlaced, tmp_path):
    label = label16(channels, channels)
    path = tmp_path / "label.png"
    path.write_bytes(raw_trees.png16(label, interlaced))
    ids = raw_files.read_label(path, "synthia")
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, label[..., 0])
    label[3, 5, 0] = 256
    path.write_bytes(raw_trees.png16(label, interlaced))
    with pytest.raises(UserError, match=r"label.png holds the id 256, beyond 255"):
        raw_files.read_label(path, "synthia")


def test_damaged_16_bit_labels_are_named(tmp_path):
    path, good = tmp_path / "label.png", raw_trees.png16(label16(0, 3, (9, 7)))
    cut = [good[:length] for length in range(len(good))]
    flipped = [good[:i] + bytes([good[i] ^ 16]) + good[i + 1 :] for i in range(len(good))]
    for damaged in (*cut, *flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"label.png is not a readable label image \(it"):
            raw_files.read_label(path, "synthia")


READ_LABELS = """
import sys
from pathlib import Path
from fada_jax.input_pipeline import raw_files
for path in sys.argv[1:]:
    try:
        print(raw_files.read_label(Path(path), "synthia").sum(), "tensorflow" in sys.modules)
    except Exception as error:
        print(error)
"""


def test_tensorflow_is_imported_for_16_bit_labels_alone_and_is_quiet(tmp_path):
    label = label16(0, 3)
    Image.fromarray(label[..., 0].astype(np.uint8)).save(tmp_path / "8.png")
    (tmp_path / "16.png").write_bytes(raw_trees.png16(label))
    (tmp_path / "short.png").write_bytes(raw_trees.png16(label, rows=30))
    variables = {key: value for key, value in environment().items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    paths = [tmp_path / name for name in ("8.png", "16.png", "short.png")]
    result = subprocess.run([sys.executable, "-c", READ_LABELS, *paths], capture_output=True, text=True, env=variables)
    total = label[..., 0].sum(dtype=int)
    expected = f"{total} False\n{total} True\n{paths[2]} is not a readable label image (a damaged 16-bit PNG)\n"
    assert (result.stdout, result.stderr) == (expected, "")


def test_unlabelled_images_and_dummy_test_labels_carry_no_labels(tmp_path):
    raw_trees.cityscapes(tmp_path / "c")
    convert("cityscapes", tmp_path / "c", tmp_path / "data")
    raw_trees.crosscity(tmp_path / "x")
    convert("crosscity", tmp_path / "x", tmp_path / "data", city="Rome")
    for stream, count in (
        (Stream("cityscapes", "test", (64, 32)), 3),
        (Stream("crosscity", "train", (64, 32), city="Rome"), 3),
    ):
        with pytest.raises(UserError, match="has no labels"):
            read(tmp_path / "data", stream, "crosscity13")
        unlabelled = dataclasses.replace(stream, labels=False)
        assert len(read(tmp_path / "data", unlabelled, "crosscity13")) == count


def test_stored_resize_equals_pillow(tmp_path):
    raw_trees.gta5(tmp_path / "raw", 2)
    convert("gta5", tmp_path / "raw", tmp_path / "data", resize=(32, 18))
    found = read(tmp_path / "data", Stream("gta5", "train", (32, 18)), "cityscapes19")
    raw = Image.fromarray(raw_trees.picture(1, 36, 64))
    np.testing.assert_array_equal(found["00001"][0], raw.resize((32, 18), Image.Resampling.BICUBIC))
    label = Image.fromarray(raw_trees.ids(1, 36, 64, 35)).resize((32, 18), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(
        found["00001"][1], label_table("gta5", get_class_set("cityscapes19"))[np.asarray(label)]
    )


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
    assert expected in (tmp_path / "data" / "gta5_errors.txt").read_text()
    assert "00002" not in read(tmp_path / "data", Stream("gta5", "train", (64, 36)), "cityscapes19")


def test_the_command_reports_wrong_folders_in_one_line(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    cases = [
        (raw / "images", "must be the folder that holds images/ and labels/"),
        (tmp_path / "empty", "holds no images"),
        (tmp_path / "nowhere", "no such folder"),
    ]
    for folder, expected in cases:
        arguments = ("--dataset=gta5", f"--raw_dir={folder}", f"--data_dir={tmp_path}/data")
        assert expected in run(*arguments, expect=1)
    assert not (tmp_path / "data" / "gta5").exists()


def test_damaged_records_are_named(tmp_path):
    raw_trees.gta5(tmp_path / "raw")
    root, _, _ = convert("gta5", tmp_path / "raw", tmp_path / "data")
    shard = next(root.glob("*.tfrecord*"))
    data = bytearray(shard.read_bytes())
    data[np.load(indexes.path(root, "train"))["records"][3][1] + 500] ^= 1  # In the payload, not in its frame.
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"{shard.name}: record \d is damaged"):
        records.verify(root)
    with pytest.raises(UserError, match=rf"{shard.name}: record \d is damaged"):
        read(tmp_path / "data", Stream("gta5", "train", (64, 36)), "cityscapes19")


@pytest.mark.parametrize("truncated", [False, True])
def test_damaged_records_fail_or_are_skipped_by_name_and_count(truncated, tmp_path, capsys):
    raw_trees.gta5(tmp_path / "raw")
    root, _, _ = convert("gta5", tmp_path / "raw", tmp_path)
    stream = Stream("gta5", "train", (64, 36))
    options = {"class_set": get_class_set("cityscapes19"), "batch_size": 3, "seed": 5}

    def train(count, start_step=0, **more):
        found = streams.train_batches(tmp_path, stream, start_step=start_step, **options, **more)
        return list(itertools.islice(found, count))

    whole = train(6)
    shard = next(root.glob("*.tfrecord*"))
    data, places = bytearray(shard.read_bytes()), np.load(indexes.path(root, "train"))["records"]
    damaged = 5 if truncated else 2
    if truncated:
        del data[-100:]
    else:
        data[places[2][1] + 60] ^= 4
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=rf"{shard.name}: record {damaged} is damaged .*config.damaged_records=skip"):
        train(6)
    capsys.readouterr()
    found = train(6, damaged_records="skip")
    messages = capsys.readouterr().err
    assert f"{shard.name}: record {damaged} is damaged" in messages and messages.count("1 of train so far") == 1
    # The next intact image stands in, everything else is as it was; so does a resumed stream.
    lost, stand_in = (raw_trees.picture(i + 1, 36, 64) for i in (damaged, (damaged + 1) % 6))
    for before, after in zip(whole, found, strict=True):
        for a, b in zip(before["image"], after["image"], strict=True):
            np.testing.assert_array_equal(b, stand_in if (a == lost).all() else a)
    resumed = train(2, start_step=4, damaged_records="skip")
    for a, b in zip(found[4:], resumed, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    # The score leaves it out, whatever the number of processes.
    intact = sorted({f"{i:05d}" for i in range(1, 7)} - {f"{damaged + 1:05d}"})
    for count in (1, 2, 4):
        seen, batches = [], set()
        for index in range(count):
            part = list(
                streams.eval_batches(
                    tmp_path, stream, class_set=options["class_set"], batch_size=4, process_index=index,
                    process_count=count, damaged_records="skip",
                )
            )  # fmt: skip
            batches.add(len(part))
            seen += [name for b in part for name, real in zip(b["name"], b["mask"], strict=True) if real]
        assert sorted(seen) == intact and len(batches) == 1
    with pytest.raises(UserError, match=f"record {damaged} is damaged"):
        read(tmp_path, stream, "cityscapes19")


def test_a_missing_data_set_names_the_command_that_makes_it(tmp_path):
    stream = Stream("gta5", "train", (64, 36))
    with pytest.raises(UserError, match=r"convert_dataset.py --dataset=gta5"):
        streams.num_examples(tmp_path, stream)
    raw_trees.gta5(tmp_path / "raw")
    convert("gta5", tmp_path / "raw", tmp_path)
    with pytest.raises(UserError, match="no split 'val': one of train"):
        streams.num_examples(tmp_path, dataclasses.replace(stream, split="val"))
    with pytest.raises(UserError, match="camvid11"):
        read(tmp_path, stream, "camvid11")
    shutil.rmtree(tmp_path / "raw")
    assert streams.num_examples(tmp_path, stream) == 6


@pytest.fixture(scope="module")
def public_camvid(tmp_path_factory):
    """A tree with the frames of the public copy, which tests only read."""
    return raw_trees.camvid(tmp_path_factory.mktemp("camvid"))


def camvid_names(root):
    """Frames of each split by the raw layout's own listing."""
    return {split: [e.name for e in examples] for split, examples in layouts.camvid(root).items() if examples}


def test_the_public_camvid_converts(public_camvid, tmp_path):
    _, counts, errors = convert("camvid", public_camvid, tmp_path)
    sizes = {"train_day": 305, "train_dusk": 62, "val_day": 101, "test_day": 171, "test_dusk": 31, "final_dusk": 31}
    assert counts == sizes and not errors
    ends = {
        "train_dusk": ("0001TP_006690", "0001TP_008520"),
        "val_day": ("0016E5_07959", "0016E5_08159"),
        "test_day": ("Seq05VD_f00000", "Seq05VD_f05100"),
        "test_dusk": ("0001TP_008550", "0001TP_009450"),
        "final_dusk": ("0001TP_009480", "0001TP_010380"),
    }
    for split, (first, last) in ends.items():
        found = read(tmp_path, Stream("camvid", split, (8, 6)), "camvid11")
        assert (min(found), max(found), len(found)) == (first, last, sizes[split])
        for name in (first, last):
            number = int(name[-5:])
            np.testing.assert_array_equal(found[name][0], raw_trees.picture(number, 6, 8))
            ids = raw_trees.ids(number, 6, 8, 12)
            np.testing.assert_array_equal(found[name][1], np.where(ids == 11, IGNORE, ids))
    # Every public frame is in one split, and those of dusk are the documented lists.
    names = camvid_names(public_camvid)
    assert sorted(itertools.chain(*names.values())) == sorted(itertools.chain(*raw_trees.camvid_names().values()))
    for split, (_, frames) in layouts.CAMVID_DUSK.items():
        assert tuple(names[split]) == frames
    assert not set(names["test_dusk"]) & set(names["final_dusk"])


@pytest.mark.parametrize(
    "path",
    [
        "test/0001TP_006690",  # A training frame.
        "test/0001TP_008551",
        "test/0001TP_010410",
        "test/0016E5_07959",
        "test/test_00001",  # As in earlier copies.
        "train/0001TP_008550",
        "train/Seq05VD_f00000",
        "val/0006R0_f00930",
    ],
)
def test_camvid_refuses_what_is_no_frame_of_a_split(path, tmp_path):
    for name in ("train/0006R0_f00930", "val/0016E5_07959", "test/0001TP_008550", path):
        folder, stem = name.split("/")
        for target in (tmp_path / folder, tmp_path / f"{folder}annot"):
            target.mkdir(exist_ok=True)
            (target / f"{stem}.png").touch()
    with pytest.raises(UserError) as error:
        layouts.camvid(tmp_path)
    folder = path.split("/")[0]
    expected = f"{tmp_path / path}.png is no frame of {folder}/ in CamVid's SegNet split: take it out of the folder"
    assert str(error.value) == expected


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not in ../shared/data/camvid")
def test_camvid_converts(public_camvid, tmp_path):
    _, counts, _ = convert("camvid", CAMVID, tmp_path, workers=2)
    # A copy may lack frames, but not those that are trained on and scored.
    here, public = camvid_names(CAMVID), camvid_names(public_camvid)
    assert counts == {split: len(names) for split, names in here.items()}
    assert all(here[split] == public[split] for split in ("train_day", "train_dusk", "test_dusk"))
    assert all(set(names) <= set(public[split]) for split, names in here.items())
    found = read(tmp_path, Stream("camvid", "test_dusk", (480, 360)), "camvid11")
    name = sorted(found)[7]
    np.testing.assert_array_equal(
        found[name][0], np.asarray(Image.open(CAMVID / "test" / f"{name}.png").convert("RGB"))
    )
    raw = np.asarray(Image.open(CAMVID / "testannot" / f"{name}.png"))
    np.testing.assert_array_equal(found[name][1], np.where(raw == 11, 255, raw))


def run(*arguments, expect=0):
    """Output of the command, or its one line of error: then it ends early and needs no process of its own."""
    if not expect:
        return command("scripts/convert_dataset.py", "--workers=1", *arguments)
    status, _, errors = command_here("scripts/convert_dataset.py", "--workers=1", *arguments)
    assert status == expect, errors[-4000:]
    return one_error(errors)


def stored(root, split):
    """What a converted split holds, in order."""
    index = np.load(indexes.path(root, split))
    payloads = [records.read_payload(root, index["shards"], r, i) for i, r in enumerate(index["records"])]
    features = [tf.train.Example.FromString(payload).features.feature for payload in payloads]
    return index["names"].tolist(), index["counts"].tolist(), [{k: str(f[k]) for k in sorted(f)} for f in features]


@pytest.mark.slow
def test_beam_converts_as_the_process_pool_does(tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: see docs/data.md")
    raw = raw_trees.cityscapes(tmp_path / "raw")
    arguments = ("--dataset=cityscapes", f"--raw_dir={raw}")
    run(*arguments, f"--data_dir={tmp_path}/pool")
    beam = (*arguments, f"--data_dir={tmp_path}/beam", "--beam=--runner=DirectRunner")
    assert "train 6 images, val 3 images, test 3 images" in run(*beam, "--verify")
    pool, made = (records.folder(tmp_path / name, "cityscapes") for name in ("pool", "beam"))
    for split in ("train", "val", "test"):
        assert stored(pool, split) == stored(made, split)
    before = {p.name: p.read_bytes() for p in made.iterdir()}
    label = next((raw / "gtFine" / "train" / "aachen").iterdir())
    label.unlink()
    assert f"{label} is missing" in run(*beam, "--overwrite", expect=1)
    assert {p.name: p.read_bytes() for p in made.iterdir()} == before
    assert "train 5 images" in run(*beam, "--overwrite", "--on_error=skip")
    for path in (raw / "leftImg8bit" / "val").rglob("*.png"):
        path.write_bytes(b"")
    assert "no image of val can be used (3 bad" in run(*beam, "--overwrite", "--on_error=skip", expect=1)
    assert "runner" in run(*arguments, f"--data_dir={tmp_path}/x", "--beam=--runner=Nobody", expect=1)


def test_beam_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="--beam needs Apache Beam, in an environment of its own"):
        convert("gta5", raw_trees.gta5(tmp_path / "raw", 1), tmp_path / "data", beam="--runner=DirectRunner")
    assert not (tmp_path / "data").exists()


def test_the_command_skips_verifies_and_tells_another_size(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw")
    expected = break_truncated(raw)
    arguments = ("--dataset=gta5", f"--raw_dir={raw}", f"--data_dir={tmp_path}/data")
    assert expected in run(*arguments, expect=1)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["gta5_errors.txt"]
    output = run(*arguments, "--on_error=skip", "--resize=32x18", "--verify")
    assert (
        "train 5 images" in output and "1 skipped" in output and expected in output and "verified (train 5)" in output
    )
    assert "gta5_errors.txt" in output
    assert "already in" in run(*arguments, "--resize=32x18")
    error = run(*arguments, expect=1)
    assert "holds gta5 at 32x18, not at its own size: --overwrite" in error
    raw_trees.gta5(raw)
    run(*arguments, "--overwrite")
    assert not (tmp_path / "data" / "gta5_errors.txt").exists()
    assert "at its own size, not at 32x18" in run(*arguments, "--resize=32x18", expect=1)


def test_a_killed_conversion_leaves_nothing_that_looks_complete(tmp_path):
    raw, data = raw_trees.gta5(tmp_path / "raw", 400), tmp_path / "data"
    arguments = ["--dataset=gta5", f"--raw_dir={raw}", f"--data_dir={data}"]
    process = subprocess.Popen(
        [sys.executable, "scripts/convert_dataset.py", "--workers=2", *arguments],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    root = records.folder(data, "gta5")
    # It dies in the middle, with workers of its own.
    for _ in range(600):
        workers = [int(x) for x in children.read_text().split()] if children.exists() else []
        if len(workers) >= 2 and any((root.parent / ".1.0.0.partial" / ".built").rglob("*incomplete*")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not root.exists() and (root.parent / ".1.0.0.partial").is_dir()
    with pytest.raises(UserError, match="is not there"):
        streams.num_examples(data, Stream("gta5", "train", (64, 36)))
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "train 400 images" in run(*arguments, "--verify")
    assert [p.name for p in data.iterdir()] == ["gta5"] and [p.name for p in root.parent.iterdir()] == ["1.0.0"]


def test_a_kill_while_replacing_loses_nothing(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw")
    root, _, _ = convert("gta5", raw, tmp_path / "data")
    before = {p.name: p.read_bytes() for p in root.iterdir()}
    (root / ".made_by_fada_jax").touch()
    root.rename(root.with_name(".1.0.0.replaced"))
    break_missing(raw)
    with pytest.raises(UserError, match="is missing"):
        convert("gta5", raw, tmp_path / "data")
    assert {p.name: p.read_bytes() for p in root.iterdir()} == before


def test_nothing_usable_is_no_data_set(tmp_path):
    raw = raw_trees.gta5(tmp_path / "raw", 2)
    for path in (raw / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image of train can be used \(2 bad"):
        convert("gta5", raw, tmp_path / "data", skip_errors=True)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["gta5_errors.txt"]


@pytest.mark.parametrize(
    ("dataset", "city", "gone", "expected"),
    [
        ("gta5", "", "images", "images/ and labels/"),
        ("gta5", "", "labels", "images/ and labels/"),
        ("synthia", "", "RAND_CITYSCAPES/RGB", "RAND_CITYSCAPES/"),
        ("synthia", "", "RAND_CITYSCAPES/GT", "GT/LABELS/"),
        ("cityscapes", "", "leftImg8bit", "leftImg8bit/ and gtFine/"),
        ("cityscapes", "", "gtFine", "leftImg8bit/ and gtFine/"),
        ("crosscity", "Rome", "Rome/Labels", "holds Rome/"),
        ("crosscity", "Rome", "Rome", "holds Rome/"),
    ],
)
def test_a_wrong_level_names_the_expected_folder(dataset, city, gone, expected, tmp_path):
    raw = getattr(raw_trees, dataset)(tmp_path / "raw")
    shutil.rmtree(raw / gone)
    with pytest.raises(UserError, match=f"is not there: --raw_dir must be the folder that .*{expected}"):
        convert(dataset, raw, tmp_path / "data", city=city)
    assert not (tmp_path / "data").exists()


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_own_data_convert_with_a_class_map(sizes, seed):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        values = {
            "name": "mine",
            "classes": [{"name": "a", "ids": [3, 4]}, {"name": "b", "ids": [9]}],
            "ignored_ids": [0],
        }
        (root / "map.json").write_text(json.dumps(values))
        raw_ids = np.array([0, 3, 4, 9], np.uint8)
        for i, count in enumerate(sizes):
            raw_trees.folder(root / "raw", f"split{i}", count, raw_ids[raw_trees.ids(seed, 20, 30, 4)])
        counts = convert(
            "folder", root / "raw", root / "data", name="own", class_map=read_class_map(root / "map.json")
        )[1]
        assert counts == {f"split{i}": count for i, count in enumerate(sizes)}
        assert records.verify(records.folder(root / "data", "own")) == counts
        found = read(root / "data", Stream("own", "split0", (30, 20)), str(root / "map.json"))
        expected = np.array([255, 0, 0, 1])[raw_trees.ids(seed, 20, 30, 4)]
        for _, label in found.values():
            np.testing.assert_array_equal(label, expected)


def test_own_data_are_refused_in_words(tmp_path):
    raw_trees.folder(tmp_path / "raw", "train", 2, np.full((20, 30), 7, np.uint8))
    good = tmp_path / "map.json"
    good.write_text('{"classes": [{"name": "a", "ids": [1]}]}')
    common = ("--dataset=folder", f"--data_dir={tmp_path}/data")
    cases = [
        (("--name=own", f"--raw_dir={tmp_path}/raw"), "--class_map is missing"),
        (("--name=gta5", f"--raw_dir={tmp_path}/raw", f"--class_map={good}"), "--name=gta5"),
        (("--name=own", f"--raw_dir={tmp_path}/raw", f"--class_map={good}"), "ids that own does not define: [7]"),
        (
            ("--name=own", f"--raw_dir={tmp_path}/raw/train", f"--class_map={good}"),
            "must be the folder that holds <split>",
        ),
        (("--name=own", f"--raw_dir={tmp_path}/raw", f"--class_map={tmp_path}/no.json"), "no.json cannot be read"),
    ]
    for arguments, expected in cases:
        assert expected in run(*common, *arguments, expect=1)
    with pytest.raises(UserError, match="--dataset=folder --name=own"):
        streams.num_examples(tmp_path, Stream("own", "train", (64, 36)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "() must be an object"),
        ({"classes": []}, "classes=() "),
        ({"clases": []}, "class"),
        ({"classes": [{"name": "a", "ids": []}]}, "classes[0].ids=() "),
        ({"classes": [{"name": "a", "ids": [256]}]}, "classes[0].ids[0]=256 must be at most 255"),
        ({"classes": [{"ids": [1]}]}, "classes[0].name is missing"),
        ({"classes": [{"name": "a", "ids": [1]}, {"name": "a", "ids": [2]}]}, "two classes are called 'a'"),
        ({"classes": [{"name": "a", "ids": [1]}, {"name": "b", "ids": [1]}]}, "raw id 1 of class 'b' is used twice"),
        ({"classes": [{"name": "a", "ids": [1], "color": [1, 2]}]}, "classes[0].color"),
        ({"classes": [{"name": "a", "ids": [1]}], "ignored_ids": 0}, "ignored_ids=0 must be"),
        ({"classes": [{"name": "a", "ids": [1]}], "ignored_ids": [1]}, "raw id 1 of class 'a' is used twice"),
    ],
)
def test_a_wrong_class_map_is_refused_by_entry(values, expected, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"map.json: ") as error:
        get_class_set(str(tmp_path / "map.json"))
    assert expected in str(error.value)
