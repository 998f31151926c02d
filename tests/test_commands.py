"""Every command says what it does with an example; wrong use ends with one line that names what is at fault."""

import json
import platform
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT, WITHOUT_EXTRAS, command_here, environment
from PIL import Image

from fada_jax import __main__ as program
from fada_jax import classes, cli, predict
from fada_jax.errors import UserError
from fada_jax.scripts import config_reference

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature"


def run(commands):
    """Status, stdout and stderr of each command, from one process."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_commands.py")], input=json.dumps(commands), capture_output=True,
        text=True, cwd=ROOT, env=environment(), timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def test_every_command_says_what_it_does_with_an_example():
    modules = {**program.COMMANDS, "": "fada_jax"}
    for module, (status, out, err) in zip(
        modules.values(), run([[m, "--help"] for m in modules.values()]), strict=True
    ):
        assert status == 0 and not err, (module, err)
        first, *rest = out.splitlines()
        assert re.match(r"[A-Z].{25,}[.:;]$|[A-Z].{25,},", first), (module, first)
        command = module.replace("fada_jax.scripts.", "scripts/") if module != "fada_jax" else "fada-jax"
        assert any(line.startswith("  ") and command in line for line in rest), (module, "no example")
        # ``__main__`` lists commands instead of flags.
        assert module == "fada_jax" or "Flags:" in out, module


def test_a_missing_extra_is_named_on_one_line():
    """Each command is a fork of a process that has imported what all of them need."""
    code = f"""
import os, runpy, flax, jax, orbax.checkpoint
for module in {[*program.COMMANDS.values()]}:
    print("==", module, file=sys.stderr, flush=True)
    if not os.fork():
        sys.argv, sys.stdout = [module, "--help"], open(os.devnull, "w")
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        os._exit(0)  # A command may also end by returning.
    os.wait()
"""
    arguments = [sys.executable, "-W", "ignore", "-c", WITHOUT_EXTRAS + code]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment())
    _, *sections = re.split(r"== (\S+)\n", result.stderr)
    answers = dict(zip(sections[::2], sections[1::2], strict=True))
    assert [*answers] == [*program.COMMANDS.values()], result.stderr
    for module in ("predict", "export", "convert_weights", "scripts.make_miniature"):
        assert answers.pop(f"fada_jax.{module}") == ""
    for module, extra in (("train", "train"), ("evaluate", "train"), ("scripts.report", "report")):
        line = rf"error: \w+ is not installed: pip install 'fada-jax\[{extra}\]'\n"
        assert re.fullmatch(line, answers.pop(f"fada_jax.{module}"))
    for answer in answers.values():
        assert re.fullmatch(r"(error: \w+ is not installed: pip install 'fada-jax\[\w+\]'\n)?", answer), answer


def test_wrong_use_of_every_command_ends_with_one_line(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "image.png").write_bytes(b"\x89PNG no image")
    (tmp_path / "empty").mkdir()
    predict_ = ["fada_jax.predict", f"--workdir={nowhere}", f"--out={tmp_path}/out"]
    cases = [
        (["fada_jax", "fly"], 2, "no command 'fly'"),
        (["fada_jax.train", CONFIG], 1, "--workdir is missing"),
        (["fada_jax.train", CONFIG, "--wrkdir=W"], 2, "wrkdir"),
        (["fada_jax.evaluate"], 2, "workdir"),
        (["fada_jax.evaluate", f"--workdir={nowhere}"], 1, nowhere),
        (["fada_jax.export", f"--workdir={nowhere}", "--output=X"], 1, nowhere),
        (["fada_jax.export", "--workdir=W"], 2, "output"),
        (["fada_jax.convert_weights"], 1, "import or export"),
        (["fada_jax.convert_weights", "export", f"--workdir={nowhere}", "--output=x.txt"], 1, "--output=x.txt"),
        (["fada_jax.convert_weights", "import", f"--input={nowhere}.pth", "--output=W"], 1, f"{nowhere}.pth"),
        (predict_, 1, "no image given"),
        ([*predict_, nowhere], 1, f"{nowhere}: no such image"),
        ([*predict_, f"{tmp_path}/*.tif"], 1, "no file matches"),
        ([*predict_, f"{tmp_path}/empty"], 1, "empty holds no image"),
        ([*predict_, f"{tmp_path}/notes.txt"], 1, "notes.txt: not a readable image"),
        ([*predict_, "--on_error=skip", f"{tmp_path}/image.png"], 1, "none of 1 images can be read"),
        ([*predict_, "--submission", f"{tmp_path}/image.png"], 1, "<city>_<seq>_<frame>_leftImg8bit.png"),
        ([*predict_, "--tile=big", nowhere], 1, "--tile=big: must be WIDTHxHEIGHT"),
        ([*predict_, "--overlap=2", nowhere], 2, "overlap"),
        (["fada_jax.scripts.make_miniature"], 1, "--out is missing"),
        (["fada_jax.scripts.convert_dataset", "--dataset=gta5"], 2, "data_dir"),
        (["fada_jax.scripts.convert_dataset", "--dataset=gta6", "--data_dir=D"], 2, "gta6"),
        (["fada_jax.scripts.convert_dataset", "--dataset=gta5", f"--raw_dir={nowhere}", f"--data_dir={tmp_path}/d"],
         1, nowhere),
        (["fada_jax.scripts.inspect_dataset", "--dataset=gta5", f"--data_dir={nowhere}"], 1, nowhere),
        (["fada_jax.scripts.run_recipe", CONFIG], 2, "workdir"),
        (["fada_jax.scripts.run_recipe", "--config=configs/none.py", "--workdir=W"], 1, "configs/none.py"),
        (["fada_jax.scripts.report", f"--workdir={nowhere}", f"--output={tmp_path}/r.html"], 1, nowhere),
        (["fada_jax.scripts.config_reference", "surplus"], 1, "unexpected argument 'surplus'"),
    ]  # fmt: skip
    for (command, status, expected), (got, _, err) in zip(cases, run([case[0] for case in cases]), strict=True):
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert got == status and len(lines) == 1 and "Traceback" not in err, (command, got, err[-2000:])
        assert expected in lines[0], (command, lines[0])
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "image.png", "empty"}


def test_the_reference_of_config_keys_is_current_and_complete():
    page = (ROOT / "docs" / "configs.md").read_text()
    assert page == config_reference.reference(), "run python scripts/config_reference.py"
    assert "||" not in page


def test_images_of_folders_and_globs_are_found_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "drive" / "a").mkdir(parents=True)
    for name in ("frame10.png", "frame9.JPG", "a/frame1.png", "notes.txt"):
        (tmp_path / "drive" / name).touch()
    found, _ = predict.find_images([str(tmp_path / "drive")])
    assert list(map(str, found)) == ["a/frame1", "frame9", "frame10"]
    found, own = predict.find_images([str(tmp_path / "drive" / "**" / "frame1*.png")])
    assert list(map(str, found)) == ["frame1", "frame10"] and own == 0
    with pytest.raises(UserError, match="several images are called 'frame9'"):
        predict.find_images([str(tmp_path / "drive" / "frame9.JPG"), "frame9.png"])


def test_neighbours_of_one_size_are_batched_and_damaged_ones_named(tmp_path):
    sizes = {"a": (4, 6), "b": (4, 6), "c": (4, 6), "d": (5, 6), "e": (4, 6)}
    for name, size in sizes.items():
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "bb.png")
    (tmp_path / "bb.png").write_bytes((tmp_path / "bb.png").read_bytes()[:60])
    found, _ = predict.find_images([str(tmp_path)])
    skipped = []
    batches = [("".join(map(str, names)), x.shape) for names, x in predict.batches(found, 2, skipped)]
    assert batches == [("ab", (2, 4, 6, 3)), ("c", (1, 4, 6, 3)), ("d", (1, 5, 6, 3)), ("e", (1, 4, 6, 3))]
    assert len(skipped) == 1 and "bb.png" in skipped[0]
    with pytest.raises(UserError, match=r"bb\.png"):
        list(predict.batches(found, 2, None))


def test_the_cityscapes_server_gets_its_names_and_ids(tmp_path):
    found, _ = predict.find_images(["test/berlin/berlin_000000_000019_leftImg8bit.png"])
    assert list(map(str, predict.submission_names(found))) == ["berlin_000000_000019"]
    with pytest.raises(UserError, match="same frame"):
        predict.submission_names({**found, **predict.find_images(["berlin_000000_000019_other.png"])[0]})
    # The ids of the official class list.
    official = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert classes.raw_ids(classes.get_class_set("cityscapes19")).tolist() == official
    assert classes.raw_ids(classes.get_class_set("crosscity13")).tolist()[-1] == 33
    with pytest.raises(UserError, match="no raw ids"):
        classes.raw_ids(classes.ClassSet("own", ("path",), ((0, 0, 0),)))


@pytest.mark.parametrize("text", ["128", "-128x64", "128x", "12.5x64", "x", "", "0x64", "16x15", "128x64x3", "१२८x64"])
def test_sizes_that_are_none_name_their_flag(text):
    with pytest.raises(UserError, match=f"--size={text}: must be WIDTHxHEIGHT of at least 16 pixels"):
        cli.size("size", text, least=16)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is the mallopt of glibc that is told so")
def test_commands_get_the_memory_of_a_step_from_the_system_once():
    script = """
import resource, sys
from fada_jax import cli
if sys.argv[1] == "kept":
    cli._keep_freed_memory()
for step in range(20):
    bytearray(100 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout)
        for how in ("kept", "returned")
    }
    pages = (100 << 20) // resource.getpagesize()
    assert faults["returned"] - faults["kept"] > 15 * pages


def test_the_whole_traceback_is_shown_where_it_is_asked_for(monkeypatch, tmp_path):
    evaluate_ = ("-m", "fada_jax.evaluate", f"--workdir={tmp_path / 'nowhere'}")
    status, _, errors = command_here(*evaluate_)
    assert status == 1 and "Traceback" not in errors
    status, _, errors = command_here(*evaluate_, "--debug")
    assert status == 1 and "Traceback" in errors and "in stage_workdir" in errors
    assert errors.splitlines()[-1].startswith("error: no checkpoint in")
    monkeypatch.setenv("FADA_JAX_DEBUG", "1")
    assert "Traceback" in command_here(*evaluate_)[2]
