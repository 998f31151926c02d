"""Ends commands in ways that a user, a scheduler or a broken disk ends them, many times, and looks how they end.

  python tests/endings.py damaged --runs=200 --out=DIR     training on a damaged record
  python tests/endings.py convert --runs=200 --out=DIR     Ctrl-C, to all processes, in a conversion by two workers
  python tests/endings.py train --runs=200 --out=DIR       SIGTERM, SIGINT or SIGHUP in training

Signals come at random moments, from the first import on. Each run must end within 30 seconds of its signal, with a
documented status and one line, and leave no process and nothing half-written. Most runs are forks of a process that has
imported what they share, so that they take seconds, and every fifth is a process of its own. DIR/KIND.json gets the
counts; status 1 where a run ended otherwise.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import interruptions
import numpy as np
import raw_trees
from commands import ROOT, environment

LIMIT = 30
PROGRESS = re.compile(r".*\d+/\d+ images, .* a second.*|")
INTERRUPTED = "interrupted; run the same command again to continue"
SAVED = re.compile(r"error: stopped at step \d+ of \d+, saved: run the same command again to go on")
SIGNALS = {"damaged": (), "convert": (signal.SIGINT,), "train": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
FRESH = 5  # Every so many runs are processes of their own.


# Runs ----------------------------------------------------------------------------------------------------------------


def serve():
    """Forks a command for each line of standard input, and tells its process; the fork ends as a command does."""
    import fada_jax.train  # noqa: F401  (imported once, for all forks)
    from fada_jax.input_pipeline import conversion  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if not process:
            os.setsid()
            for descriptor, path in ((1, request["out"]), (2, request["err"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.argv = request["command"]
            return request["command"][0]
        print(process, flush=True)
        threading.Thread(target=lambda p=process: print(p, os.waitpid(p, 0)[1], flush=True), daemon=True).start()
    return ""


class Server:
    """``serve`` in a process of its own."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve"], cwd=ROOT, env=environment(), stdin=-1, stdout=-1, text=True
        )
        self._process.stdout.readline()
        self._lock, self._begun, self._ended = threading.Condition(), [], {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            process, *status = map(int, line.split())
            with self._lock:
                if status:
                    self._ended[process] = os.waitstatus_to_exitcode(status[0])
                else:
                    self._begun.append(process)
                self._lock.notify_all()

    def start(self, command, out, err):
        with self._lock:
            request = {"command": list(command), "out": str(out), "err": str(err)}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            self._lock.wait_for(lambda: self._begun)
            process = self._begun.pop()
        while os.getpgid(process) != process:
            time.sleep(0.001)
        return process

    def wait(self, process, seconds):
        """Exit status; None where it has not ended by then."""
        with self._lock:
            self._lock.wait_for(lambda: process in self._ended, seconds)
            return self._ended.get(process)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


class Fresh:
    """The same for processes of their own."""

    def __init__(self):
        self._processes = {}

    def start(self, command, out, err):
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment(), stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        self._processes[process.pid] = process
        return process.pid

    def wait(self, process, seconds):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._processes[process].wait(seconds)


def in_session(leader):
    """Processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def run(server, command, number, delay, folder):
    """One run: how it ended, as a dict."""
    out, err = folder / "out", folder / "err"
    process = server.start(command, out, err)
    status = server.wait(process, delay if number else LIMIT)
    sent = bool(number) and status is None
    if sent:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, number)
        status = server.wait(process, LIMIT)
    left = in_session(process)
    if left and status is not None:
        time.sleep(1)
        left = in_session(process)
    if left:
        os.killpg(process, signal.SIGKILL)
        server.wait(process, LIMIT)
    lines = [line for line in err.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return {
        "status": status,
        "signal": int(number) if sent else 0,
        "delay": delay,
        "hang": status is None,
        "left": len(left) if status is not None else 0,
        "lines": [line for line in lines if not PROGRESS.fullmatch(line)],
        "fresh": isinstance(server, Fresh),
    }


# Kinds ---------------------------------------------------------------------------------------------------------------


def prepare(kind, out):
    """Data of a kind; returns its folder."""
    root = out / f"{kind}_data"
    if kind == "convert":
        return root if root.is_dir() else raw_trees.gta5(root, 40)
    if not root.is_dir():
        interruptions.make_data(root)
        if kind == "damaged":
            shard = next((root / "data" / "gta5").rglob("*.tfrecord*"))
            os.truncate(shard, shard.stat().st_size // 2)
    return root / "data"


def command(kind, data, folder):
    if kind == "convert":
        options = ("--dataset=gta5", f"--raw_dir={data}", f"--data_dir={folder / 'data'}", "--workers=2")
        return ("scripts/convert_dataset.py", *options)
    config = "--config=configs/gta5_to_cityscapes.py:size=miniature"
    options = [option for option in interruptions.OPTIONS if "_steps=" not in option and "every" not in option]
    options += ["--config.total_steps=1000", "--config.log_every=1"]
    options += ["--config.checkpoint_every=20", f"--config.data_dir={data}", f"--workdir={folder / 'w'}"]
    return ("fada_jax/train.py", config, *options)


def problems(kind, folder, ended):
    """What is wrong with the end of a run; nothing where it ended as it should."""
    status, lines = ended["status"], ended["lines"]
    found = ["hangs"] if ended["hang"] else []
    found += [f"{ended['left']} processes left"] if ended["left"] else []
    if ended["hang"]:
        return found
    interrupted = ended["signal"] and status == 128 + ended["signal"] and lines == [INTERRUPTED]
    if kind == "damaged":
        good = status == 1 and len(lines) == 1 and "is damaged" in lines[0] and lines[0].startswith("error: ")
    elif kind == "convert":
        good = interrupted or (status == 0 and not lines)
        converted = folder / "data" / "gta5" / "1.0.0"
        # A process that had to be ended by force leaves what the next one clears.
        beside = [path for path in (folder / "data").rglob("*") if converted not in (path, *path.parents)]
        if [path for path in beside if path not in converted.parents] or (status == 0) != converted.is_dir():
            found.append(f"left behind: {', '.join(str(path.relative_to(folder)) for path in beside[:4])}")
    else:
        good = interrupted or (status == 1 and len(lines) == 1 and SAVED.fullmatch(lines[0]))
    return found + ([] if good else [f"status {status}: {lines[:3]}"])


def campaign(kind, runs, out, jobs=1, seed=0):
    """Runs a kind; returns the counts and the runs that ended otherwise."""
    out.mkdir(parents=True, exist_ok=True)
    interruptions.cache_compiled(out, os.environ.__setitem__)
    data, rng = prepare(kind, out), np.random.default_rng(seed)
    server, fresh = Server(), Fresh()
    # An undisturbed beginning says what a random moment is, and compiles.
    span = {}
    for starter in (fresh, server, server):
        with tempfile.TemporaryDirectory(dir=out) as folder:
            span[starter] = began_to_work(kind, starter, command(kind, data, Path(folder)), Path(folder))

    def one(number):
        starter = fresh if number % FRESH == 0 else server
        chosen = rng.choice(SIGNALS[kind]) if SIGNALS[kind] else 0
        with tempfile.TemporaryDirectory(dir=out) as folder:
            delay = float(rng.uniform(0.1 if starter is fresh else 0.02, span[starter] * 1.2))
            ended = run(starter, command(kind, data, Path(folder)), chosen, delay, Path(folder))
            ended["problems"] = problems(kind, Path(folder), ended)
        if ended["problems"]:
            print(f"run {number}: {ended}", flush=True)
        return ended

    with ThreadPoolExecutor(jobs) as pool:
        ends = list(pool.map(one, range(runs)))
    server.close()
    return {
        "runs": runs,
        "signals": sum(bool(ended["signal"]) for ended in ends),
        "hangs": sum(ended["hang"] for ended in ends),
        "processes_left": sum(ended["left"] for ended in ends),
        "statuses": dict(collections.Counter(str(ended["status"]) for ended in ends)),
        "otherwise": [ended for ended in ends if ended["problems"]],
    }


def began_to_work(kind, starter, arguments, folder):
    """Seconds until a conversion has ended, or a training has made some steps."""
    process, began = starter.start(arguments, folder / "out", folder / "err"), time.monotonic()
    while starter.wait(process, 0.05) is None and time.monotonic() - began < 300:
        if kind == "train" and (folder / "out").read_text().count("loss_") >= 5:
            os.killpg(process, signal.SIGKILL)
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SIGNALS)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out, began = options.out.absolute(), time.monotonic()
    result = campaign(options.kind, options.runs, out, options.jobs, options.seed)
    (out / f"{options.kind}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{options.kind}: {result['runs']} runs, {result['signals']} signals, {result['hangs']} hangs, "
        f"{result['processes_left']} processes left, {len(result['otherwise'])} ended otherwise, statuses "
        f"{result['statuses']}, {(time.monotonic() - began) / 60:.0f} minutes"
    )
    sys.exit(bool(result["otherwise"]))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        if script := serve():
            # At the outermost level, so that the interpreter ends as a command's does.
            runpy.run_path(str(ROOT / script), run_name="__main__")
    else:
        main()
