"""How commands end: signals, standard streams, surroundings, the pool of workers, and streams that are left."""

import contextlib
import errno
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import endings as campaigns
import numpy as np
import pytest
from commands import ROOT, environment

from fada_jax import cli, config_arguments, endings, progress
from fada_jax.errors import UserError
from fada_jax.input_pipeline import reading, workers

CONFIG = "configs/gta5_to_cityscapes.py:size=miniature"


def python(code, *, options=(), number=None, after=0.5, **variables):
    """Status, stdout and stderr of a program, which gets a signal once it says 'ready' where one is given."""
    process = subprocess.Popen(
        [sys.executable, *options, "-c", textwrap.dedent(code)], cwd=ROOT, env={**environment(), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if number:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(after)
        os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    end = time.monotonic() + 5
    while campaigns.in_session(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not campaigns.in_session(process.pid)
    return process.returncode, out, err


def shell(command, **variables):
    """Status and stderr of a line of the shell."""
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT,
        env={**environment(), "PYTHON": sys.executable, **variables}, timeout=120,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


# Signals -------------------------------------------------------------------------------------------------------------

INTERRUPTED = f"{endings.INTERRUPTED}\n"
COMMAND = "from fada_jax import as_command, endings; import time, sys\n"


@pytest.mark.parametrize("number", endings.SIGNALS)
def test_a_signal_before_the_command_runs_is_one_line(number):
    assert python(COMMAND + "print('ready', flush=True); time.sleep(60)", number=number) == (
        128 + number, "", INTERRUPTED,
    )  # fmt: skip


@pytest.mark.parametrize(
    "swallowing",
    ["while True:\n  try: time.sleep(60)\n  except BaseException: pass", "import re; re.match('(a+)+b', 'a' * 60)"],
    ids=["swallowed", "not in Python"],
)
def test_a_signal_that_nobody_obeys_ends_the_process_in_time(swallowing):
    code = f"{COMMAND}endings.PATIENCE = 1.0; endings.begin(); print('ready', flush=True)\n{swallowing}"
    began = time.monotonic()
    assert python(code, number=signal.SIGTERM) == (143, "", INTERRUPTED)
    assert time.monotonic() - began < 20


def test_what_saves_gets_its_time():
    code = """
    endings.PATIENCE = 0.5; endings.begin()
    with endings.saving():
        print("ready", flush=True)
        try: time.sleep(60)
        except KeyboardInterrupt: time.sleep(2)
    print("saved", flush=True)
    """
    assert python(COMMAND + textwrap.dedent(code), number=signal.SIGTERM) == (0, "saved\n", "")


def test_a_signal_in_a_callback_is_obeyed_outside_of_it():
    code = """
    class Slow:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(60)
    slow = Slow()
    slow = None
    time.sleep(60)
    """
    status, out, err = python(COMMAND + textwrap.dedent(code), number=signal.SIGINT)
    assert (status, out, err) == (130, "", INTERRUPTED)


def test_the_same_signal_twice_at_once_is_one():
    code = """
    endings.begin(); print("ready", flush=True)
    try: time.sleep(60)
    except KeyboardInterrupt: time.sleep(1)
    print("once", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND + textwrap.dedent(code)], cwd=ROOT, env=environment(), stdout=-1, text=True
    )
    process.stdout.readline()
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert (process.stdout.read(), process.wait()) == ("once\n", 0)


def test_nohup_stays_nohup():
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{COMMAND}endings.begin()\n"
    code += "print('ready', flush=True); time.sleep(1.5); print('done')"
    assert python(code, number=signal.SIGHUP) == (0, "done\n", "")


def test_processes_started_undisturbed_get_no_signal():
    code = f"""
    import subprocess
    child = "import time; time.sleep(1.5); print('child', flush=True)"
    with endings.undisturbed():
        process = subprocess.Popen([{sys.executable!r}, "-c", child])
    print("ready", flush=True)
    try: time.sleep(60)
    except KeyboardInterrupt: process.wait()
    """
    assert python(COMMAND + textwrap.dedent(code), number=signal.SIGINT) == (0, "child\n", "")


@pytest.mark.parametrize(("delay", "number"), [(0, signal.SIGHUP), (0.3, signal.SIGINT), (0.8, signal.SIGTERM)])
def test_a_signal_during_imports_is_one_line(delay, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "fada_jax.export", "--help"], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    status = Path(f"/proc/{process.pid}/status")
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & 1 << signal.SIGTERM - 1:
        time.sleep(0.001)  # Until the first of our modules is there.
    time.sleep(delay)
    process.send_signal(number)
    err = process.stderr.read()
    assert (process.wait(30), err) in ((128 + number, INTERRUPTED), (0, ""))


@pytest.mark.parametrize(("child", "status"), [("time.sleep(60)", 143), ("signal.signal(15, 1); time.sleep(2)", 143)])
def test_a_signal_to_the_demo_ends_it_with_the_command_at_work(child, status):
    """Also where that command has done its work already and ends with 0: nothing further may begin."""
    code = f"""
    import subprocess
    from fada_jax import __main__ as program
    child = "from fada_jax import as_command; import signal, time; print('ready', flush=True); {child}"
    begin = subprocess.Popen
    program.subprocess.Popen = lambda command: begin([command[0], "-c", child])
    sys.argv = ["fada-jax", "demo", "--out=/none/demo"]
    program.main()
    """
    ended, out, err = python(COMMAND + textwrap.dedent(code), number=signal.SIGTERM, after=1)
    assert (ended, out, err) == (status, "", INTERRUPTED)


# Standard streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["fada_jax", "fada_jax.scripts.config_reference"])
def test_a_full_standard_output_is_named(module):
    status, _, err = shell(f"$PYTHON -m {module} --help > /dev/full")
    assert (status, err) == (1, "error: the standard output cannot be written: No space left on device\n")


def test_a_closed_pipe_is_named():
    status, out, err = shell("$PYTHON -m fada_jax --help | head -c 1 > /dev/null; sleep 0")
    assert (status, err) == (0, "") or "Broken pipe" in err
    status, out, err = shell("$PYTHON -u -m fada_jax --help | true; exit ${PIPESTATUS[0]}")
    assert (status, out, err) == (1, "", "error: the standard output cannot be written: Broken pipe\n")


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "2> /dev/full", ">&- 2>&- <&-"])
def test_other_closed_streams_change_no_status(closed):
    assert shell(f"$PYTHON -m fada_jax --help > /dev/null {closed}")[0] == 0
    assert shell(f"$PYTHON -m fada_jax nope {closed}")[0] == 2


def test_every_character_can_be_printed():
    code = "endings.begin(); print('stra\\xdfe \\u690d \\udcff \\ud800')"
    result = subprocess.run(
        [sys.executable, "-c", COMMAND + code], capture_output=True, cwd=ROOT,
        env={**environment(), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == "straße 植 ".encode() + b"\xff \\ud800\n"


# Progress ------------------------------------------------------------------------------------------------------------


def test_progress_in_a_file_is_rare_and_ends_in_newlines(capsys):
    with progress.shown("gta5", 1000) as show:
        for done in range(1, 1001):
            show(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("gta5: 1000/1000 images, ")


def test_an_error_after_progress_on_a_terminal_begins_a_line(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, contextlib.suppress(UserError):
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(progress, "_TERMINAL_EVERY", 0)
        with progress.shown("", 4) as show:
            show(1)
            show(2)
            raise UserError
    text = ""
    while not text.endswith("\n"):
        text += os.read(ours, 4096).decode()
    os.close(ours)
    lines = text.split("\r")
    assert [line[:10] for line in lines[1:3]] == ["1/4 images", "2/4 images"] and lines[-1] == "\n"


@pytest.mark.parametrize("stream", ["None", "open('/dev/full', 'w')"])
def test_progress_is_worth_no_failure(stream):
    code = f"""
    import os, sys
    from fada_jax import progress
    sys.stderr = {stream}
    with progress.shown("", 2) as show:
        show(2)
    os._exit(0)
    """
    assert python(code)[0] == 0


# Workers and streams -------------------------------------------------------------------------------------------------


def _square(number):
    if number == 13:
        raise UserError("no 13")
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.002 * (number % 3))
    return number * number


def test_workers_map_in_order_and_pass_errors():
    results, seen = workers.in_order(_square, [*range(20, 80), 13, 1], 2), []
    with pytest.raises(UserError, match="no 13") as caught:
        for result in results:
            seen.append(result)
    assert seen == [x * x for x in range(20, 80)]
    assert "in _square" in str(caught.value.__cause__)


def test_a_killed_worker_is_an_error_and_no_wait():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(workers.in_order(_square, [1, 2, 17, 3, 4], 2))


def test_workers_left_in_the_midst_end_with_the_program():
    code = """
    import sys, time
    sys.path.insert(0, "tests")
    from fada_jax.input_pipeline import workers
    results = workers.in_order(time.sleep, [0.01] * 1000, 2)
    next(results)
    raise SystemExit(3)
    """
    assert python(code)[0] == 3


def _load(number):
    if number == 6:
        raise UserError("no 6")
    return (np.full((2, 2), number, np.uint8),)


def test_a_reader_gets_the_first_error_as_it_is_and_leaves_nothing_open():
    blank = [np.zeros((2, 2), np.uint8)]
    batches, seen = reading.batches(1000, _load, blank, lambda x: x, 2), []
    with pytest.raises(UserError, match="no 6"):
        for batch in batches:
            seen += batch[:, 0, 0].tolist()
    assert seen == [0, 1, 2, 3, 4, 5] and not reading._open
    left = reading.batches(10**9, lambda i: (np.zeros((2, 2), np.uint8),), blank, lambda x: x, 2)
    next(left)
    assert len(reading._open) == 1
    left.close()
    assert not reading._open


# Configs and surroundings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--config", "c.py"], ["--config=c.py"]),
        (["--workdir=w", "--config.a=1", "--config=c.py:x=1"], ["--config=c.py:x=1", "--config.a=1", "--workdir=w"]),
        (["--config=c.py", "--config.a=(1,2)", "--config.a=(3,)"], ["--config=c.py", "--config.a=(3,)"]),
        (["--config=b.py", "--config=c.py"], ["--config=c.py"]),
        (["--config.a", "-1", "--config", "c.py"], ["--config=c.py", "--config.a=-1"]),
        (["-config=c.py", "-config.a=1", "x.png"], ["--config=c.py", "--config.a=1", "x.png"]),
        (["--config=c.py", "--config.flag", "--dry_run"], ["--config=c.py", "--config.flag", "--dry_run"]),
        (["--config=c.py", "--", "--config=d.py"], ["--config=c.py", "--", "--config=d.py"]),
        (["--configs=c.py"], ["--configs=c.py"]),
    ],
)
def test_config_arguments_mean_what_they_say(given, meant):
    assert config_arguments.normalised(given) == meant


def test_a_folder_called_configs_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    found = config_arguments.installed("configs/gta5_to_cityscapes.py:stage=source")
    assert found == f"{ROOT}/fada_jax/configs/gta5_to_cityscapes.py:stage=source"
    (tmp_path / "configs" / "gta5_to_cityscapes.py").touch()
    assert config_arguments.installed("configs/gta5_to_cityscapes.py") == "configs/gta5_to_cityscapes.py"


def test_optimised_python_keeps_the_help():
    status, out, _ = shell("$PYTHON -OO -m fada_jax --help")
    assert status == 0 and out.startswith("Every command under one name")


def test_a_user_without_a_home_keeps_no_compiled_steps(monkeypatch):
    def no_entry():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cli.Path, "home", no_entry)
    cli._keep_compiled_steps()


def test_an_ascii_locale_reads_names_as_utf8():
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    status, _, err = shell(
        f"$PYTHON -m fada_jax.train --config {CONFIG} --workdir=/none --config.data_dir=/none/straße",
        **ascii_only,
    )
    assert status == 1 and err.startswith("error: /none/straße/gta5") and len(err.splitlines()) == 1, err


def test_only_the_machine_is_to_blame_for_its_own_errors():
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO):
        assert cli._of_the_machine(OSError(number, os.strerror(number), "x")) == f"x: {os.strerror(number)}"
    for number in (errno.ENOENT, errno.EISDIR, errno.EBADF, errno.EINVAL):
        assert not cli._of_the_machine(OSError(number, os.strerror(number), "x"))
    assert cli._of_the_machine(MemoryError()).startswith("out of memory")
    assert not cli._of_the_machine(KeyError("x"))


def test_other_processes_that_do_not_come_end_the_wait():
    status, _, err = shell(
        f"$PYTHON -m fada_jax.train --config={CONFIG} --coordinator=localhost:9 --num_processes=2 --process_id=1 "
        "--join_timeout=2"
    )
    lines = err.splitlines()
    assert status == 1 and len(lines) == 2, err
    assert lines[0] == "waiting for the other processes at localhost:9, 2 seconds at most"
    assert lines[1].startswith("error: the other processes at localhost:9 were not met within 2 seconds")


# Campaigns, in small -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", campaigns.SIGNALS)
def test_commands_end_as_documented(kind, tmp_path):
    result = campaigns.campaign(kind, 10, tmp_path)
    assert result["otherwise"] == [] and (kind == "damaged" or result["signals"])
