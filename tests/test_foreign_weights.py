"""Weight files of whatever origin: bounded before they are read, refused by the tensor's name, written over nothing."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from commands import environment  # noqa: E402
from mistakes_weights import nested, released  # noqa: E402
from safetensors.numpy import save, save_file  # noqa: E402
from test_bad_inputs import tiny_config, write_checkpoints  # noqa: E402

import fada_jax  # noqa: E402
from fada_jax import convert_weights, files  # noqa: E402
from fada_jax.errors import UserError  # noqa: E402
from fada_jax.interop import (  # noqa: E402
    archives,
    exporting,
    reading,
    safetensors_files,
    tensors,
    torch_files,
    torch_optimizers,
    torch_tables,
)
from fada_jax.models import ModelSpec  # noqa: E402
from fada_jax.stages import workdirs  # noqa: E402

SPEC = ModelSpec("resnet18", 19, "frozen", (2, 2, 2, 2), (4, 4, 4, 4), 4, True, 8, (1,))


def tensors_of(spec):
    """A small file in the released layout in which nothing is wrong."""
    contents = {"iteration": 3}
    for entry in torch_tables.generator_table(spec):
        contents.setdefault(entry.section, {})[entry.key] = np.ones(entry.shape, np.float32)
    return contents


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "w"
    write_checkpoints(folder, tiny_config(), 3, 6)
    return folder


# PyTorch's files ------------------------------------------------------------------------------------------------------


def test_what_a_file_shares_stays_shared(tmp_path):
    torch.save({"x": nested(30), "y": [torch.ones(3)] * 10_000}, tmp_path / "x.pth")
    began = time.monotonic()
    contents = torch_files.read_file(tmp_path / "x.pth")
    assert time.monotonic() - began < 10
    assert contents["x"][0] is contents["x"][1] and contents["y"][0] is contents["y"][-1]
    # Neither does an iteration made of it take for ever to be refused.
    for iteration in (nested(30), 10**5000, [10**5000]):
        torch.save(released(iteration=iteration), tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"its iteration is \[\[\[|is no readable PyTorch"):
            reading.read_model(tmp_path / "x.pth")


def test_values_are_shown_on_one_short_line():
    assert tensors.shown(10**5000) == "<int>" and tensors.shown([10**5000]) == "<list>"
    assert tensors.shown("a\n" * 1000).isprintable() and len(tensors.shown(nested(30))) <= 60
    assert tensors.first(["a"] * 5) == "a, a, a and 2 more"


def test_names_in_an_archive_leave_no_folder(tmp_path):
    torch.save({"x": torch.ones(3)}, tmp_path / "good.pth")
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "good.pth") as old, zipfile.ZipFile(work / "x.pth", "w") as new:
        for member in old.infolist():
            new.writestr(member.filename.replace("good/", "../../good/"), old.read(member))
        new.writestr("../../../escaped", b"x")
        new.writestr(str(tmp_path / "absolute"), b"x")
    before = set(tmp_path.parent.rglob("*"))
    try:
        assert torch_files.read_file(work / "x.pth").keys() == {"x"}
    except UserError as error:
        assert str(work / "x.pth") in str(error)
    assert set(tmp_path.parent.rglob("*")) == before


def test_an_archive_holds_no_more_than_it_has(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(1000))
        archive.writestr("b", bytes(1000))
    assert not archives.problem(path)
    whole = path.read_bytes()
    # Both members are said to lie at the first one's place, and to be larger than all of the file.
    sizes = struct.pack("<II", 1000, 1000)
    path.write_bytes(whole.replace(sizes, struct.pack("<II", 2**20, 2**20)))
    assert "whose members are larger than it is" in archives.problem(path)
    path.write_bytes(whole.replace(sizes, struct.pack("<II", 1000, 2**30)))
    assert "member 'a' is compressed" in archives.problem(path)
    path.write_bytes(whole.replace(b"PK\x01\x02", b"PK\x01\x03"))
    assert "damaged archive" in archives.problem(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert "two members have one name" in archives.problem(path)


def test_half_precision_does_not_grow_beyond_measure(tmp_path):
    base = torch.ones(10_000, dtype=torch.float16)
    torch.save({str(i): base.view(-1) for i in range(200)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="its tensors are larger than the file by far"):
        torch_files.read_file(tmp_path / "x.pth")
    torch.save({"h": base, "b": base.bfloat16(), "d": base.double(), "i": torch.arange(3)}, tmp_path / "x.pth")
    read = torch_files.read_file(tmp_path / "x.pth")
    assert [str(value.dtype) for value in read.values()] == ["float32", "float32", "float64", "int64"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(3, dtype=torch.complex64), "is of type complex64"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is sparse|no readable PyTorch"),
        (lambda: torch.ones(3).to(torch.float8_e5m2), "is of type float8_e5m2"),
        (lambda: torch.ones(3, dtype=torch.uint16), "is of type uint16"),
    ],
)  # fmt: skip
def test_tensors_without_an_array_are_named(tmp_path, make, message):
    torch.save({"model": [{"a": make()}]}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as caught:
        torch_files.read_file(tmp_path / "x.pth")
    assert "x.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_keys_that_are_no_names_are_shown_on_one_line(tmp_path):
    for key in ("a\nb\x1b[31m", 5, (1, 2), None, True, "x" * 10_000):
        torch.save({key: torch.empty(3, device="meta")}, tmp_path / "x.pth")
        with pytest.raises(UserError, match="is on the device 'meta'") as caught:
            torch_files.read_file(tmp_path / "x.pth")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 2000


BN = "backbone.bn1"


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("classifier", "conv2d_list.0.bias", np.float32(1), "bias is no vector"),
        ("classifier", "conv2d_list.0.bias", "text", "bias is no vector"),
        ("classifier", None, [1, 2], "classifier is no state dict"),
        ("feature_extractor", f"{BN}.running_var", np.full(4, -1.0), "bn1.running_var holds a negative variance"),
        ("feature_extractor", f"{BN}.running_var", np.zeros(4), "a variance of 0, which frozen batch norm divides by"),
        ("feature_extractor", f"{BN}.weight", np.full(4, np.inf), "bn1.weight holds a NaN or an infinity"),
        ("feature_extractor", f"{BN}.weight", np.full(4, 1e39), "bn1.weight holds a NaN or an infinity"),
        ("feature_extractor", f"{BN}.weight", [1.0] * 4, "bn1.weight is a list, not a tensor"),
        ("feature_extractor", f"{BN}.weight", np.ones((4, 1)), r"bn1.weight has shape \(4, 1\) in the file"),
        ("feature_extractor", f"{BN}.weight", np.ones(4, bool), "bn1.weight is not an array of floating-point"),
        ("feature_extractor", f"{BN}.weight", None, "the file lacks feature_extractor.backbone.bn1.weight"),
        ("feature_extractor", f"module.{BN}.weight", np.ones(4), "holds one tensor under two names"),
        ("feature_extractor", "backbone.bn9.weight", np.ones(4), "backbone.bn9.weight, unknown to the model"),
    ],
)
def test_released_tensors_are_those_of_the_model(section, name, value, message):
    file = tensors_of(SPEC)
    torch_tables.import_generator(file, SPEC)
    if name is None:
        file[section] = value
    elif value is None:
        del file[section][name]
    else:
        file[section][name] = value
    with pytest.raises(UserError, match=message):
        reading.released_model(file, "x.pth")
        torch_tables.import_generator(file, SPEC)


def test_live_batch_norm_may_have_seen_a_constant():
    live = dataclasses.replace(SPEC, norm="live")
    file = tensors_of(live)
    file["feature_extractor"]["backbone.bn1.running_var"] = np.zeros(4, np.float32)
    torch_tables.import_generator(file, live)


def test_two_tensors_of_one_place_are_refused():
    # torchvision's pool4 has no tensors: what stands at its number would fall on the next convolution.
    file = {"features.23.weight": np.ones(3), "features.24.weight": np.ones(3)}
    with pytest.raises(UserError, match=r"holds feature_extractor\.backbone\.23\.weight twice"):
        torch_tables.generator_tensors(file)
    torch_tables.generator_tensors({f"features.{'9' * 5000}.weight": np.ones(3)})


@pytest.mark.parametrize(
    ("step", "good"),
    [(5, True), (5.0, True), (np.float32(5), True), (np.array(5), True), (-1, False), (0.5, False), (np.nan, False),
     (np.inf, False), (2**40, False), ("5", False), (True, False), (np.ones(2), False), ([5], False), (None, True)],
)  # fmt: skip
def test_adams_count_is_a_number_of_steps(step, good):
    moments = torch_optimizers.Moments("model_D", ({"step": step} if step is not None else {},))
    if good:
        assert torch_optimizers._adam_count(moments) == (5 if step is not None else 0)
    else:
        with pytest.raises(UserError, match="step count that is no number of steps"):
            torch_optimizers._adam_count(moments)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (5, "no optimizer state"),
        ({"state": {}, "param_groups": 5}, "is no optimizer state of PyTorch"),
        ({"state": {}, "param_groups": [{"params": [[]]}]}, "is no optimizer state of PyTorch"),
        ({"state": {0: 5}, "param_groups": [{"params": [0]}]}, "is no optimizer state of PyTorch"),
        ({"state": {}, "param_groups": [{"params": [0, 0]}]}, "keeps two states of one tensor"),
        ({"state": {}, "param_groups": [{"params": range(10**7)}] * 10**6}, ""),
    ],
)
def test_optimizer_states_are_bounded(state, message):
    file = {"optimizer_fea": state}
    if message:
        with pytest.raises(UserError, match=message):
            torch_optimizers.read_moments(file, "feature_extractor")
    else:
        assert len(torch_optimizers.read_moments(file, "feature_extractor").tensors) == 100_000


# Headers of .safetensors ----------------------------------------------------------------------------------------------


def with_header(path, text, data=bytes(16)):
    text = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        "null",
        "[]",
        "{",
        '"x"',
        "[" * 10_000,
        '{"x": ' * 10_000,
        json.dumps({"x": 5}),
        json.dumps({"x": {**GOOD, "dtype": 5}}),
        json.dumps({"x": {**GOOD, "dtype": "F31"}}),
        json.dumps({"x": {**GOOD, "shape": [-4]}}),
        json.dumps({"x": {**GOOD, "shape": [4.5]}}),
        json.dumps({"x": {**GOOD, "shape": [2**70]}}),
        json.dumps({"x": {**GOOD, "shape": [2**40, 2**40]}}),
        json.dumps({"x": {**GOOD, "shape": [5]}}),
        json.dumps({"x": {**GOOD, "data_offsets": [0, 17]}}),
        json.dumps({"x": {**GOOD, "data_offsets": [16, 0]}}),
        json.dumps({"x": {**GOOD, "data_offsets": [-16, 0]}}),
        json.dumps({"x": {**GOOD, "data_offsets": [0, 2**63]}}),
        json.dumps({"x": {**GOOD, "data_offsets": [0, 16, 32]}}),
        json.dumps({"x": {**GOOD, "more": 1}}),
        json.dumps({"x": GOOD, "y": GOOD}),
        json.dumps({"x": GOOD, "__metadata__": 5}),
        json.dumps({"x": GOOD, "__metadata__": {"fada_jax": 5}}),
        json.dumps({"x": {**GOOD, "dtype": "BF16", "shape": [8]}}),
        json.dumps({"x": {**GOOD, "dtype": "C64", "shape": [2]}}),
        '{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}',
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path, text):
    path = tmp_path / "x.safetensors"
    with_header(path, text)
    for read in (torch_files.read_file, reading.read_description, fada_jax.load):
        try:
            assert read(path) is None and read is reading.read_description  # Says nothing about a model.
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("length", [0, 1, 15, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_header_is_no_longer_than_its_file(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match="no readable safetensors file"):
        torch_files.read_file(path)
    for short in range(8):
        path.write_bytes(bytes(short))
        with pytest.raises(UserError, match="no readable safetensors file"):
            torch_files.read_file(path)


def test_a_sparse_file_with_an_endless_header_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**34)
    with pytest.raises(UserError, match="a header of 8589934592 bytes"):
        torch_files.read_file(path)


# What can be asked for ------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_named_by_number_or_word(workdir):
    for asked, step in ((None, 6), ("last", 6), (3, 3), ("3", 3), (np.int64(3), 3)):
        assert fada_jax.load(workdir, checkpoint=asked).step == step
    assert fada_jax.load(workdir / "checkpoints" / "3").step == 3
    for asked in (3.0, True, b"3", [3], 10**5000):
        with pytest.raises(UserError, match="a step, 'last', 'best' or None"):
            fada_jax.load(workdir, checkpoint=asked)
    for asked in ("²", "03", "+3", " 3", "", 4, -3, 10**400, "9" * 5000):
        with pytest.raises(UserError, match="is not in"):
            fada_jax.load(workdir, checkpoint=asked)
    for asked in (3, "best", "nope"):
        with pytest.raises(UserError, match="holds one model alone"):
            fada_jax.load(workdir / "checkpoints" / "3", checkpoint=asked)


def test_what_lies_at_a_path_is_looked_at_first(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    (tmp_path / "x.onnx").write_bytes(b"x")
    for path, message in (
        (tmp_path / "pipe.safetensors", "is a named pipe"),
        (tmp_path / "zero.pth", "is a device"),
        (tmp_path / "loop.pth", "cannot be read"),
        (tmp_path / "x.onnx", "ends in .pth or .safetensors"),
        (tmp_path / "x.pth", "no such file"),
        (tmp_path / "nothing", "no such workdir"),
        (tmp_path, "no checkpoint in"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("hdfs://host/x.pth", "is not supported"),
    ):
        with pytest.raises(UserError, match=message):
            fada_jax.load(path)


# Outputs --------------------------------------------------------------------------------------------------------------


def test_exports_replace_exports_and_nothing_else(workdir, tmp_path):
    for name in ("x.safetensors", "x.pth"):
        path = tmp_path / name
        path.write_bytes(save({"mine": np.ones(1, np.float32)}) if name == "x.safetensors" else b"mine")
        mine = path.read_bytes()
        with pytest.raises(UserError, match="is there already and was not made by fada-jax"):
            torch_files.check_output(path)
        with pytest.raises(UserError, match="is there already and was not made by fada-jax"):
            if name == "x.pth":
                torch_files.write_pth(path, {})
            else:
                exporting.export_file(workdir, path)
        assert path.read_bytes() == mine and [x.name for x in tmp_path.iterdir()] == [name]
        path.unlink()
        for value in (1.0, 2.0):
            if name == "x.pth":
                torch_files.write_pth(path, {"x": {"y": np.full(3, value, np.float32)}})
            else:
                safetensors_files.write(path, {"x.y": np.full(3, value, np.float32)}, {})
            torch_files.check_output(path)
            assert files.is_ours(path)
        path.unlink()


def test_the_mark_changes_nothing_for_pytorch(tmp_path):
    path = tmp_path / "x.pth"
    torch_files.write_pth(path, {"x": {"y": np.arange(3, dtype=np.float32)}, "iteration": 5})
    for mapped in (False, True):
        contents = torch.load(path, weights_only=True, mmap=mapped)
        assert contents.keys() == {"x", "iteration"} and contents["x"]["y"].tolist() == [0, 1, 2]
    assert zipfile.ZipFile(path).testzip() is None


def test_an_export_of_an_earlier_version_may_be_replaced(workdir, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": np.ones(1, np.float32)}, path, {"fada_jax": "{}"})
    exporting.export_file(workdir, path, "3")
    assert fada_jax.load(path).step == 3


def test_what_export_says_is_what_import_reads(workdir, tmp_path):
    exporting.export_file(workdir, tmp_path / "x.safetensors", "3")
    described = reading.read_description(tmp_path / "x.safetensors")
    assert described.step == 3 and described.class_set.name == "cityscapes19"
    summary = convert_weights.import_file(str(tmp_path / "x.safetensors"), str(tmp_path / "again"))
    assert "its weights are of step 3" in summary and (tmp_path / "again" / "checkpoints" / "0").is_dir()


def test_an_import_is_alone_in_its_folder(workdir, tmp_path):
    exporting.export_file(workdir, tmp_path / "x.safetensors")
    output = tmp_path / "w"
    with workdirs.hold(output), pytest.raises(UserError, match="another run is at work in it"):
        convert_weights.import_file(str(tmp_path / "x.safetensors"), str(output))
    (output / ".DS_Store").write_bytes(b"x")
    convert_weights.import_file(str(tmp_path / "x.safetensors"), str(output))
    for path in (output, output / "checkpoints"):
        with pytest.raises(UserError, match="holds "):
            convert_weights.import_file(str(tmp_path / "x.safetensors"), str(path))


def test_a_full_disk_leaves_nothing(workdir, tmp_path):
    """On a real one, where this machine lets us make one."""
    exporting.export_file(workdir, tmp_path / "m.safetensors")
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import sys\n"
        "from fada_jax import convert_weights\n"
        "from fada_jax.errors import UserError\n"
        "from fada_jax.interop import exporting, safetensors_files, stablehlo, torch_files\n"
        "from fada_jax.training import checkpoints\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        f"disk, big = Path({str(disk)!r}), {{'x': np.ones(10**6, np.float32)}}\n"
        "for write in (\n"
        f"    lambda: exporting.export_file({str(workdir)!r}, disk / 'm.safetensors'),\n"
        "    lambda: torch_files.write_pth(disk / 'm.pth', big),\n"
        f"    lambda: stablehlo.export_model(checkpoints.load_model({str(workdir)!r}), disk / 'm'),\n"
        f"    lambda: convert_weights.import_file({str(tmp_path / 'm.safetensors')!r}, disk / 'w'),\n"
        "):\n"
        "    try:\n"
        "        write()\n"
        "    except UserError as error:\n"
        "        print(error, [x for x in disk.rglob('*') if x.name not in ('w', 'lock', 'checkpoints')])\n"
    )
    script = tmp_path / "full.sh"
    (tmp_path / "full.py").write_text(code)
    script.write_text(
        f"mount -t tmpfs -o size=60k none '{disk}' || exit 77\nexec '{sys.executable}' '{tmp_path}/full.py'\n"
    )
    result = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", str(script)], capture_output=True, text=True, env=environment()
    )
    if result.returncode in (1, 77) and "Traceback" not in result.stderr:
        pytest.skip("no file system can be mounted here")
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stdout + result.stderr[-3000:]
    for line in lines:
        assert "cannot be written (No space left on device)" in line and line.endswith("[]")


def test_a_librarys_other_errors_are_defects(tmp_path):
    with pytest.raises(TypeError):
        safetensors_files.write(tmp_path / "x.safetensors", {"x": np.ones(1)}, {"not JSON": object()})
    assert not list(tmp_path.iterdir())
