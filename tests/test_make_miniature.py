"""The miniature's files are laid out and encoded like the real archives, and depend on its flags alone."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fada_jax import classes
from fada_jax.errors import UserError
from fada_jax.folders import MARKER
from fada_jax.scripts.miniature import codes, domains, files, generation, layouts
from fada_jax.scripts.miniature.renderer import render
from fada_jax.scripts.miniature.scenes import sample_scene

ROOT = Path(__file__).resolve().parents[1]

COUNTS = layouts.Counts(source=6, target=5, val=4, test=2, city_train=1, city_test=1)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def read_png16(data: bytes) -> np.ndarray:
    """uint16 [H, W, 3] of an unfiltered 16-bit RGB PNG, with its checksums verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + length
    width, height, depth, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, color) == (16, 2)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * 6)
    assert not rows[:, 0].any()
    return np.ascontiguousarray(rows[:, 1:]).view(">u2").reshape(height, width, 3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("miniature") / "raw"
    generation.generate(out, counts=COUNTS, workers=1)
    return out


def test_layout_of_the_archives(raw: Path):
    patterns = {
        r"gta5/(images|labels)/0000[1-6]\.png": 12,
        r"synthia/RAND_CITYSCAPES/(RGB|GT/LABELS)/000000[0-5]\.png": 12,
        r"cityscapes/leftImg8bit/(train|val|test)/([a-z]+)/\2_\d{6}_\d{6}_leftImg8bit\.png": 11,
        r"cityscapes/gtFine/(train|val|test)/([a-z]+)/\2_\d{6}_\d{6}_gtFine_labelIds\.png": 11,
        r"crosscity/(Rome|Rio|Tokyo|Taipei)/Images/(Train|Test)/pano_\w+\.png": 8,
        r"crosscity/(Rome|Rio|Tokyo|Taipei)/Labels/Test/pano_\w+_eval\.png": 4,
        r"miniature\.json": 1,
    }
    names = list(contents(raw))
    assert {p: sum(bool(re.fullmatch(p, name)) for name in names) for p in patterns} == patterns
    assert len(names) == sum(patterns.values())
    images = {name for name in names if "leftImg8bit" in name}
    labels = {name.replace("gtFine/", "leftImg8bit/").replace("gtFine_labelIds", "leftImg8bit") for name in names}
    assert images <= labels
    cities = {split: {p.name for p in (raw / "cityscapes/gtFine" / split).iterdir()} for split in layouts.CITIES}
    assert cities["val"] == {"frankfurt", "lindau", "munster"} and cities["train"] > {"aachen", "bremen"}
    tests = {p.name.replace(".png", "_eval.png") for p in raw.glob("crosscity/*/Images/Test/*")}
    assert tests == {p.name for p in raw.glob("crosscity/*/Labels/Test/*")}


@pytest.mark.parametrize(
    ("pattern", "mode", "size"),
    [
        ("gta5/images/*.png", "RGB", (128, 72)),
        ("gta5/labels/*.png", "P", (128, 72)),
        ("synthia/RAND_CITYSCAPES/RGB/*.png", "RGB", (128, 76)),
        ("cityscapes/leftImg8bit/*/*/*.png", "RGB", (128, 64)),
        ("cityscapes/gtFine/*/*/*.png", "L", (128, 64)),
        ("crosscity/*/Images/*/*.png", "RGB", (128, 64)),
        ("crosscity/*/Labels/Test/*.png", "L", (128, 64)),
    ],
)
def test_modes_sizes_and_ids(raw: Path, pattern: str, mode: str, size: tuple[int, int]):
    paths = list(raw.glob(pattern))
    assert paths
    for path in paths:
        image = Image.open(path)
        assert (image.mode, image.size) == (mode, size)
        if mode != "RGB":
            ids = set(np.unique(np.asarray(image)).tolist())
            assert ids <= classes.ENCODINGS[pattern.split("/")[0]].defined
            if "test" in path.parts:
                assert ids <= {0, 1, 2, 3}, "the test split's labels are dummies"
            else:
                assert {7, 11, 23} & ids


def test_gta5_palette_shows_the_classes(raw: Path):
    label = Image.open(next(raw.glob("gta5/labels/*.png")))
    ids, shown = np.asarray(label), np.asarray(label.convert("RGB"))
    colors = classes.get_class_set("cityscapes19").palette()[
        classes.label_table("gta5", classes.get_class_set("cityscapes19"))
    ]
    np.testing.assert_array_equal(shown[ids == 7], colors[ids[ids == 7]])
    np.testing.assert_array_equal(shown[ids == 11], colors[ids[ids == 11]])


def test_synthia_labels_have_16_bits_with_instances(raw: Path):
    for path in raw.glob("synthia/RAND_CITYSCAPES/GT/LABELS/*.png"):
        label = read_png16(path.read_bytes())
        assert label.shape == (76, 128, 3) and not label[..., 2].any()
        assert set(np.unique(label[..., 0]).tolist()) <= classes.ENCODINGS["synthia"].defined
        things = np.isin(label[..., 0], (8, 10, 11, 12, 17, 18, 19, 20))
        np.testing.assert_array_equal(label[..., 1] > 0, things)
    instances = np.concatenate([np.unique(read_png16(p.read_bytes())[..., 1]) for p in raw.glob("synthia/*/GT/*/*")])
    assert instances.max() > 255 or len(np.unique(instances)) > 10


def test_codes_begin_with_the_train_ids():
    assert [code.name.lower() for code in codes.Code][:19] == list(codes.NAMES)


@pytest.mark.parametrize("name", ["gta5", "synthia", "cityscapes", "Tokyo"])
def test_every_class_occurs_in_every_domain(name: str):
    layout, _ = domains.domain(name, 1.0)
    seen = np.zeros(len(codes.Code))
    for i in range(60):
        scene = sample_scene(np.random.default_rng([5, i]), layout, 128, 64)
        seen += np.bincount(scene.code.ravel(), minlength=len(codes.Code)) >= 8
    rare = {codes.NAMES[k]: int(seen[k]) for k in range(19) if seen[k] < 4}
    assert not rare, f"images of 60 that show it: {rare}"


def test_bytes_depend_on_the_seed_and_not_on_the_workers(raw: Path, tmp_path: Path):
    generation.generate(tmp_path / "two", counts=COUNTS, workers=2)
    assert contents(tmp_path / "two") == contents(raw)
    generation.generate(tmp_path / "other", ("gta5",), COUNTS, seed=1)
    first, other = contents(raw), contents(tmp_path / "other")
    assert all(first[name] != data for name, data in other.items())


def test_a_dataset_does_not_depend_on_the_others_chosen_or_on_counts(raw: Path, tmp_path: Path):
    fewer = dataclasses.replace(COUNTS, target=2)
    generation.generate(tmp_path / "raw", ("cityscapes",), fewer)
    first, made = contents(raw), contents(tmp_path / "raw")
    made.pop("miniature.json")
    assert made and all(first[name] == data for name, data in made.items())


@pytest.mark.parametrize("name", ["synthia", "cityscapes", "Rome", "Taipei"])
def test_shift_scales_the_difference_from_gta5(name: str):
    assert domains.domain(name, 0.0) == domains.domain("gta5", 1.0)
    ends, middle = (domains.domain(name, s)[1].materials["road"] for s in (0.0, 1.0)), domains.domain(name, 0.5)
    np.testing.assert_allclose(middle[1].materials["road"], np.mean(list(ends), axis=0))
    layout = domains.domain("gta5", 1.0)[0]
    scene = sample_scene(np.random.default_rng(3), layout, 128, 64)
    images = [
        render(np.random.default_rng(4), scene, domains.domain(*at)[1]).astype(float)
        for at in (("gta5", 1.0), (name, 0.0), (name, 0.5), (name, 1.0))
    ]
    change = [np.abs(image - images[0]).mean() for image in images]
    assert change[1] == 0 and 3 < change[2] < change[3]


def test_other_sizes_keep_the_scene(tmp_path: Path):
    small, large = (
        sample_scene(np.random.default_rng(9), domains.LAYOUTS["gta5"], width, width // 2) for width in (128, 256)
    )
    assert (small.code == large.code[1::2, 1::2]).mean() > 0.85
    image = render(np.random.default_rng(0), large, domains.STYLES["cityscapes"])
    assert image.shape == (128, 256, 3) and image.dtype == np.uint8


def test_out_is_never_overwritten_unasked(tmp_path: Path):
    counts = layouts.Counts(source=1)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not made by this script"):
            generation.generate(mine, ("gta5",), counts, overwrite=overwrite)
    assert (mine / "thesis.txt").exists()
    out = tmp_path / "raw"
    out.mkdir()  # An empty folder is free to take.
    generation.generate(out, ("gta5",), counts)
    with pytest.raises(UserError, match="--overwrite"):
        generation.generate(out, ("gta5",), counts)
    generation.generate(out, ("gta5",), counts, seed=2, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "raw"]


def test_an_interrupted_run_leaves_no_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, out = files.write, tmp_path / "raw"

    def stops(root: Path, task: layouts.Task) -> None:
        if task.seed[3] == 2:
            raise KeyboardInterrupt
        real(root, task)

    monkeypatch.setattr(files, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        generation.generate(out, ("gta5",), COUNTS)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(files, "write", real)
    killed = tmp_path / ".raw.partial"  # What a killed run leaves.
    killed.mkdir()
    for name in (MARKER, "stale"):
        (killed / name).touch()
    generation.generate(out, ("gta5",), COUNTS)
    assert (out / generation.MARKER).exists() and not (out / "stale").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_called_partial_but_not_ours_stays(tmp_path: Path):
    for name in ("raw.partial", ".raw.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not made by fada-jax"):
        generation.generate(tmp_path / "raw", ("gta5",), layouts.Counts(source=1))
    generation.generate(tmp_path / "other", ("gta5",), layouts.Counts(source=1))
    assert len(list(tmp_path.glob("*raw.partial/thesis.txt"))) == 2 and not (tmp_path / "raw").exists()


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(ROOT / "scripts/make_miniature.py"), *arguments]
    return subprocess.run(script, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_command_reports_progress_and_what_it_made(tmp_path: Path):
    done = command("--out=raw", "--datasets=gta5", "--source_images=3", "--workers=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gta5/images: 3 images 128x72, 3 labelled" in done.stdout
    assert re.search(r"3/3 images, [\d.]+ a second\n", done.stderr)


@pytest.mark.parametrize(
    "values",
    [
        {"size": (8, 4)},
        {"datasets": ("gta6",)},
        {"datasets": ()},
        {"seed": -1},
        {"shift": 9.0},
        {"shift": float("nan")},
        {"workers": 0},
        {"counts": layouts.Counts(source=-1)},
        {"counts": layouts.Counts(source=0)},
    ],
)
def test_bad_values_are_user_errors(tmp_path: Path, values: dict):
    with pytest.raises(UserError):
        generation.generate(tmp_path / "raw", **{"datasets": ("gta5",), "counts": layouts.Counts(source=1), **values})
    assert not list(tmp_path.iterdir())


def test_missing_out_is_one_line(tmp_path: Path):
    done = command(cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: --out is missing") and done.stderr.count("\n") == 1
