"""Artifacts are written whole, say when they are not as they were written, and fit together or are refused."""

import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import fada_jax
from fada_jax import config as schema
from fada_jax import folders
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.interop import artifacts, stablehlo
from fada_jax.training import checkpoints, optimizers, states

TINY = {
    "model.widths": (8, 8, 8, 8), "model.stage_sizes": (1, 1, 1, 1), "model.stem_width": 8, "model.aspp_rates": (1,),
    "eval.size": (32, 16), "multi_scale": (1.0,),
}  # fmt: skip


def tiny_model(seed=0):
    """A model of random weights."""
    config = gta5_to_cityscapes.get_config("size=miniature,stage=source")
    config.update_from_flattened_dict(TINY)
    config = schema.read(config)
    shapes = jax.eval_shape(
        lambda: states.create_generator(config.model, optimizers.OptimizerSpec(), jax.random.key(0))
    ).params
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return checkpoints.Model(config.model, config.preprocessing, config.classes, params, {}, config.plain(), 7)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    return stablehlo.export_model(model, tmp_path_factory.mktemp("artifact") / "model")


@pytest.fixture
def copy(artifact, tmp_path):
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


# What is in it --------------------------------------------------------------------------------------------------------


def test_its_checksums_are_those_of_sha256sum(artifact):
    result = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=artifact, capture_output=True, text=True, check=True)
    checked = {line.partition(":")[0] for line in result.stdout.splitlines()}
    assert checked == {path.name for path in artifact.iterdir()} - {"SHA256SUMS"} and len(checked) == 6


def test_it_tells_nothing_of_the_machine_that_exported_it(artifact):
    for path in artifact.glob("*.stablehlo"):
        data = path.read_bytes()
        assert b"site-packages" not in data and str(Path(fada_jax.__file__).parent).encode() not in data, path
        assert b".py" not in data, path
    assert jax.config.jax_traceback_in_locations_limit != 0


def test_the_same_model_exported_again_is_the_same_but_for_times(model, artifact, tmp_path):
    again = stablehlo.export_model(model, tmp_path / "again")
    for path in artifact.glob("*"):
        if path.suffix not in (".npz", "") and path.name != "SHA256SUMS":
            assert path.read_bytes() == (again / path.name).read_bytes(), path


# Damage ---------------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_goes_unnoticed(copy, capsys):
    paths = sorted(path for path in copy.rglob("*") if path.is_file())
    rng = random.Random(0)
    # Every file in turn: by size alone the weights would get nearly all of them.
    ends = {"refused": 0, "noted": 0}
    for i in range(200):
        path = paths[i % len(paths)]
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            fada_jax.load(copy)
            ends["noted"] += 1
            assert path.name in ("README.md", "SHA256SUMS")
            assert "README.md is not as it was written" in capsys.readouterr().err or path.name == "SHA256SUMS"
        except UserError as error:
            ends["refused"] += 1
            assert str(copy) in str(error) and "\n" not in str(error)
        flip(path, bit)
    assert ends["refused"] > 150
    capsys.readouterr()
    fada_jax.load(copy)
    assert capsys.readouterr().err == ""


def earlier(folder, **values):
    """An artifact as version 0.1 wrote it: format 1, without checksums."""
    described = json.loads((folder / "model.json").read_text())
    described = {key: value for key, value in {**described, "format": 1, **values}.items() if value is not None}
    (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n")
    (folder / "SHA256SUMS").unlink()
    return folder


def test_earlier_artifacts_still_load_and_say_that_they_have_no_checksums(artifact, copy, capsys):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expected = fada_jax.load(artifact).probabilities(image)
    earlier(copy)
    got = fada_jax.load(copy)
    assert "is of an earlier version, without checksums" in capsys.readouterr().err
    np.testing.assert_array_equal(got.probabilities(image), expected)
    described = json.loads((copy / "model.json").read_text())
    del described["dtype"]  # At first it computed in one type everywhere.
    (copy / "model.json").write_text(json.dumps(described))
    assert fada_jax.load(copy).dtype == "float32"


def test_damage_to_earlier_artifacts_is_no_traceback(copy):
    earlier(copy)
    rng = random.Random(1)
    for path in sorted(copy.glob("*")):
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            fada_jax.load(copy)
        except UserError as error:
            assert str(copy) in str(error) and "\n" not in str(error)
        flip(path, bit)


def test_a_function_that_ends_the_process_which_reads_it_is_damage(copy, monkeypatch):
    earlier(copy)
    monkeypatch.setattr(artifacts, "_READ", "import os; os.abort()")
    with pytest.raises(UserError, match="is damaged: its functions cannot be read"):
        fada_jax.load(copy)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{digest}  ../outside", "SHA256SUMS has a line that is no sum"),
        ("{digest}  /dev/zero", "SHA256SUMS has a line that is no sum"),
        ("{digest}  tensorflow/../../outside", "SHA256SUMS has a line that is no sum"),
        ("nothing", "SHA256SUMS has a line that is no sum"),
    ],
)
def test_sums_name_nothing_outside(copy, line, message):
    with (copy / "SHA256SUMS").open("a") as file:
        file.write(line.format(digest="0" * 64) + "\n")
    with pytest.raises(UserError, match=message):
        fada_jax.load(copy)


def test_every_file_that_is_read_needs_its_sum(copy):
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    for name in ("model.json", "weights.npz", "features.stablehlo"):
        (copy / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines if name not in line))
        with pytest.raises(UserError, match=f"SHA256SUMS holds no sum of {name}"):
            fada_jax.load(copy)


def test_a_file_may_not_be_a_device(copy):
    for name in ("weights.npz", "features.stablehlo", "SHA256SUMS"):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        (copy / name).symlink_to("/dev/zero")
        with pytest.raises(UserError, match="is damaged"):
            fada_jax.load(copy)
        (copy / name).unlink()
        (copy / name).write_bytes(kept)


def test_stray_files_and_an_edited_card_do_no_harm(copy, capsys):
    (copy / ".DS_Store").write_bytes(b"x")
    fada_jax.load(copy)
    assert capsys.readouterr().err == ""
    (copy / "README.md").write_text("mine\n")
    fada_jax.load(copy)
    assert "README.md is not as it was written; it decides nothing" in capsys.readouterr().err


def test_weights_of_another_model_do_not_fit(model, copy):
    wide = dataclasses.replace(model.spec, stem_width=16)
    params = jax.eval_shape(lambda: states.create_generator(wide, optimizers.OptimizerSpec(), jax.random.key(0))).params
    other = dataclasses.replace(model, spec=wide, params=jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params))
    np.savez(copy / "weights.npz", **stablehlo._weights(other))
    earlier(copy)
    with pytest.raises(UserError, match=r"weights\.npz does not fit probabilities\.stablehlo: the file holds params/"):
        fada_jax.load(copy)
    halves = {key: value.astype(np.float16) for key, value in stablehlo._weights(model).items()}
    np.savez(copy / "weights.npz", **halves)
    with pytest.raises(UserError, match="is of type float16"):
        fada_jax.load(copy)


def test_a_defect_of_ours_is_not_blamed_on_the_file(copy, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(artifacts, "_weights", broken)
    with pytest.raises(ZeroDivisionError):
        fada_jax.load(copy)


# Writing --------------------------------------------------------------------------------------------------------------


def test_what_lies_around_the_output_stays(model, tmp_path):
    for name in ("model.partial", "model.replaced", "model.lock"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    stablehlo.export_model(model, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.partial", "model.replaced", "model.lock"}
    assert len(list(tmp_path.glob("*/mine.txt"))) == 3
    with pytest.raises(UserError, match="is there already and was not made for this"):
        stablehlo.export_model(model, tmp_path / "model")


def test_what_is_in_the_way_of_the_making_stays(model, tmp_path):
    partial = tmp_path / ".model.partial"
    partial.mkdir()
    (partial / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is in the way and was not made by fada-jax"):
        stablehlo.export_model(model, tmp_path / "model")
    assert (partial / "mine.txt").read_text() == "mine"


def test_a_second_export_to_one_output_is_refused(model, tmp_path, monkeypatch):
    def second(*arguments):
        with pytest.raises(UserError, match="is being made by another process"):
            stablehlo.export_model(model, tmp_path / "model")
        raise KeyboardInterrupt

    monkeypatch.setattr(stablehlo, "_write", second)
    with pytest.raises(KeyboardInterrupt):
        stablehlo.export_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_place_is_looked_at_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "_write", lambda *arguments: pytest.fail("worked first"))
    (tmp_path / "file").write_text("mine")
    for output, message in (
        (tmp_path / "file", "is there already"),
        (tmp_path / "file" / "model", "cannot be written"),
        (Path("/proc/model"), "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            stablehlo.export_model(model, output)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*arguments, **arrays):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(stablehlo, "_serialise", lambda fn, weights: b"")
    with pytest.raises(UserError, match=r"model cannot be written \(No space left on device\): make room"):
        stablehlo.export_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_cleared(model, tmp_path, monkeypatch):
    partial = tmp_path / ".model.partial"
    partial.mkdir()
    (partial / folders.MARKER).touch()
    (partial / "weights.npz").write_bytes(b"torn")
    monkeypatch.setattr(stablehlo, "_serialise", lambda fn, weights: b"")
    stablehlo.export_model(model, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / folders.MARKER).exists()
