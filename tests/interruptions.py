"""Kills a recipe, or a stage in several processes, at random moments, and compares it with one undisturbed.

  python tests/interruptions.py --out=DIR                    a recipe of four tiny stages, killed 24 times
  python tests/interruptions.py --out=DIR --processes=2      the adversarial stage in two processes, killed 4 times
  python tests/interruptions.py --out=DIR --store=gs         data and killed workdir in a bucket (gs, s3), 20 kills
  python tests/interruptions.py --out=DIR --store=s3 --faults=0.02     and this share of requests goes wrong

Every start is the same command. Some kills follow a random step, some a half-written checkpoint, some the end of a
stage. At the end every array of the last checkpoints (parameters, batch statistics, optimizer states, D) must be
bit-identical, and the log must hold every step once, with the same losses.
"""

import argparse
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import buckets
import jax
import numpy as np
import orbax.checkpoint as ocp
import raw_trees
from commands import ROOT, environment

from fada_jax import files
from fada_jax.input_pipeline import conversion
from fada_jax.storage import caches
from fada_jax.storage import lines as stored_lines
from fada_jax.training import checksums

STAGES = ("source", "control", "adaptation", "self_distillation")
STEPS = 48
OPTIONS = (
    "--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)",
    "--config.model.widths=(8,8,8,8)", "--config.model.stem_width=8", "--config.discriminator.widths=(8,8)",
    "--config.log_every=1", "--config.checkpoint_every=4", f"--config.total_steps={STEPS}",
)  # fmt: skip
# Where kills fall.
PLACES = ("while a checkpoint was written", "during steps", "between stages")
CROP = "--config.target.crop=(48,24)"  # Of self-distillation.


def cache_compiled(out, setenv):
    """Lets later starts compile nothing anew, so that they cost little beyond their imports."""
    setenv("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def make_data(root):
    """Tiny GTA5 and Cityscapes under ``root``; returns the data folder."""
    for name, make in (("gta5", raw_trees.gta5), ("cityscapes", raw_trees.cityscapes)):
        conversion.convert(conversion.Conversion(name, make(root / "raw" / name)), root / "data")
    return root / "data"


def recipe_command(data_dir, workdir, method="fada"):
    config = f"--config=configs/gta5_to_cityscapes.py:size=miniature,method={method}"
    crop = (CROP,) if method == "fada" else ()
    return ("scripts/run_recipe.py", config, f"--config.data_dir={data_dir}", f"--workdir={workdir}", *crop, *OPTIONS)


def stage_command(data_dir, workdir):
    config = "--config=configs/gta5_to_cityscapes.py:size=miniature,stage=adaptation"
    return ("-m", "fada_jax.train", config, f"--config.data_dir={data_dir}", f"--workdir={workdir}", *OPTIONS)


class Run:
    """One start of a command in one or several processes, with what the first one prints."""

    def __init__(self, command, processes=1):
        together = [()]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                where = f"--coordinator=localhost:{free.getsockname()[1]}"
            together = [(where, f"--num_processes={processes}", f"--process_id={i}") for i in range(processes)]
        self.errors = [tempfile.TemporaryFile("w+") for _ in together]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-u", *map(str, (*command, *flags))],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            for flags, errors in zip(together, self.errors, strict=True)
        ]
        self.lines = []
        self._readers = [threading.Thread(target=self._read, args=(p, p is self.processes[0])) for p in self.processes]
        for reader in self._readers:
            reader.start()

    def _read(self, process, kept):
        for line in process.stdout:
            if kept:
                self.lines.append(line.rstrip())

    def steps(self):
        return sum("loss_" in line for line in self.lines)

    def until(self, reached, timeout=900):
        """Waits for ``reached()``; False when the command ended before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if reached():
                return True
            if self.processes[0].poll() is not None:
                return False
            time.sleep(0.002)
        raise TimeoutError(self.report())

    def kill(self):
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
        self.wait()

    def wait(self, timeout=900):
        """Exit statuses."""
        statuses = [process.wait(timeout) for process in self.processes]
        for reader in self._readers:
            reader.join()
        return statuses

    def report(self):
        texts = []
        for errors in self.errors:
            errors.seek(0)
            texts.append(errors.read()[-2000:])
        return "\n".join(self.lines[-20:] + texts)


def finish(command, processes=1):
    run = Run(command, processes)
    if any(run.wait()):
        raise RuntimeError(run.report())
    return run


def half_written(folders):
    """Checkpoints in the making: in a bucket, those without the object that completes them."""
    if not files.is_object(folders[0]):
        return [path for folder in folders for path in folder.glob("*orbax-checkpoint-tmp*")]
    found = []
    for folder in folders:
        names = folder.tree()
        steps = {name.partition("/")[0] for name in names}
        found += [folder / step for step in steps if f"{step}/{checksums.COMMITTED}" not in names]
    return found


def finished(folders):
    end = checksums.COMMITTED if files.is_object(folders[0]) else ""
    return [folder for folder in folders if (folder / str(STEPS) / end).exists()]


def wait_for_moment(run, kind, rng, folders):
    """Waits for a random moment of a kind; False when the command ended before."""
    if kind == "step":
        steps, pause = rng.integers(1, 7), 0.1
        alive = run.until(lambda: run.steps() >= steps)
    elif kind == "checkpoint":
        pause = 0.05
        alive = run.until(lambda: half_written(folders))
    else:
        before, pause = len(finished(folders)), 3
        alive = run.until(lambda: len(finished(folders)) > before)
    time.sleep(rng.uniform(0, pause))
    return alive and run.processes[0].poll() is None


def moments(rng, kills, stages):
    """Kinds of moments, in random order: each at least once, of a single stage but for its end, after which is none."""
    ends = max(1, kills // 10) if len(stages) > 1 else 0
    during = ["step", "checkpoint"] * ((kills - ends + 1) // 2)
    return rng.permutation(["stage"] * ends + during[: kills - ends]).tolist()


def torment(command, workdir, rng, kills, processes=1, stages=STAGES):
    """Starts ``command`` and kills it, ``kills`` times, then lets it finish; returns where the kills fell."""
    folders = [workdir / stage / "checkpoints" for stage in stages]
    fell = collections.Counter()
    for kind in moments(rng, kills, stages):
        run = Run(command, processes)
        if not wait_for_moment(run, kind, rng, folders):
            if any(run.wait()):
                raise RuntimeError(run.report())
            break
        writing = half_written(folders)
        run.kill()
        last = next((line for line in reversed(run.lines) if line), "nothing printed")
        where = PLACES[0] if writing else PLACES[1] if kind != "stage" else PLACES[2]
        fell[where] += 1
        print(f"kill {sum(fell.values()):>2} {where}, after: {last[:60]}", flush=True)
    finish(command, processes)
    return fell


def arrays(workdir):
    """Every array of the last checkpoint, by name."""
    found, workdir = {}, files.fetched(workdir)
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("model", "training"):
            folder = workdir / "checkpoints" / str(STEPS) / item
            # As NumPy arrays: devices of several processes are not here.
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree
            )
            tree = reader.restore(folder, ocp.args.PyTreeRestore(restore_args=as_numpy))
            for path, leaf in jax.tree.leaves_with_path(tree):
                found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def losses(workdir):
    lines = [json.loads(line) for line in stored_lines.read(workdir / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if k in ("step", "grad_norm") or k.startswith("loss_")} for line in lines]


def differences(one, two):
    """What differs between the folders of two runs of a stage; nothing when they are the same to the bit."""
    found, (a, b) = [], (arrays(one), arrays(two))
    if a.keys() != b.keys() or not a:
        found.append("other arrays")
    found += [name for name in a if name in b and a[name].tobytes() != b[name].tobytes()]
    if [line["step"] for line in losses(two)] != list(range(1, STEPS + 1)):
        found.append("metrics.jsonl does not hold every step once")
    if losses(one) != losses(two):
        found.append("losses")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=("gs", "s3"))
    parser.add_argument("--faults", type=float, default=0.0)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = None
        if options.store:
            store = stack.enter_context(buckets.store(options.store, latency=0.002))
            os.environ.update(store.variables)
            place = files.place(f"{store.base}/killed")
        campaign(options, place, store if place else None)


def upload(folder, place):
    """Copies a local folder into a bucket."""
    caches.uploaded(folder, place)
    return place


def campaign(options, place, store):
    """See the top of this file; ``place`` is the folder of a bucket, or None."""
    out, rng = options.out.absolute(), np.random.default_rng(options.seed)
    cache_compiled(out, os.environ.__setitem__)
    data_dir = make_data(out)
    make, stages = (recipe_command, STAGES) if options.processes == 1 else (stage_command, ("",))
    kills = options.kills or (20 if place else 24 if options.processes == 1 else 4)
    finish(make(data_dir, out / "whole"), options.processes)
    killed = out / "killed"
    if place:
        data_dir, killed = upload(data_dir, place / "data"), place / "run"
        store.set(faults=options.faults)
    fell = torment(make(data_dir, killed), killed, rng, kills, options.processes, stages)
    if place:
        print(f"faults: {store.set(faults=0.0)}")
    failed = False
    for stage in stages:
        found = differences(out / "whole" / stage, killed / stage)
        print(f"{stage or 'adversarial'}: {', '.join(found) or 'bit-identical, every step logged once'}")
        failed |= bool(found)
    if options.processes == 1:
        one, two = (json.loads((run / "results.json").read_text())["rows"] for run in (out / "whole", killed))
        print(f"scores: {'equal' if one == two else 'differ'}")
        failed |= one != two
    print(f"{sum(fell.values())} kills: " + ", ".join(f"{count} {where}" for where, count in fell.items()))
    sys.exit(failed)


if __name__ == "__main__":
    main()
