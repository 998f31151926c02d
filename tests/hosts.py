"""Every stage on every mesh in one, two and four processes against one, and how a run ends when one of them does.

  python tests/hosts.py --out=DIR [--parts matrix commands ends] [--write]

It takes an hour on two cores; --write puts the tables into docs/results/hosts.json.

The network, the images and the number of steps are tiny, and every process is one of this machine. Kinds of failure
are ``host_failure``'s: SIGKILL, an error of the user's and a defect, in process 0, which the others have joined, and in
another one.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import host_failure
import interruptions
import jax
import numpy as np
import orbax.checkpoint as ocp
from commands import ROOT, one_error
from interruptions import Run

from fada_jax import peers

STEPS = 4
MESHES = {"data": (), "fsdp": ("--config.mesh.fsdp=2",), "spatial": ("--config.mesh.spatial=2",)}
PROCESSES = (1, 2, 4)
TINY = (
    "--config.source.size=(48,32)", "--config.target.size=(48,32)", "--config.eval.size=(48,32)",
    "--config.target.crop=(48,32)", "--config.source.crop=(48,32)",
    "--config.model.widths=(8,8,8,48)", "--config.model.stem_width=8", "--config.discriminator.widths=(32,64)",
    "--config.generator_optimizer.kind=sgd", "--config.discriminator_optimizer.kind=sgd",
    "--config.log_every=1", "--config.checkpoint_every=2", f"--config.total_steps={STEPS}",
    "--config.eval_batch_size=1",
)  # fmt: skip
# Options of each stage by the name of its row.
STAGES = {
    "source, validated": ("source", "--config.eval_every=2"),
    "adversarial": ("adaptation", "--config.model.norm=frozen"),
    "adversarial, resumed": ("adaptation", "--config.model.norm=frozen"),
    "CLAN": ("adaptation,method=clan", "--config.discriminator.patch_width=4"),
    # It looks at the source's labels first.
    "FCNs in the wild": ("adaptation,method=fcn_wild", "--config.options.width=32", "--config.options.dropout=0.5"),
    "self-distillation, live batch norm": ("self_distillation", "--config.model.norm=live"),
    # The first update is finite, and what follows from it is not.
    "NaN skipped": ("source", "--config.on_non_finite=skip", "--config.generator_optimizer.learning_rate=1e25"),
}
LIMIT = 1e-5
# Gradients of live batch norms' scales and shifts are small differences of large sums: where a batch is split, in one
# process as in many, the optimizer's momentum of them moves by this. Losses and gradient norms stay within 1e-6.
LIMITS = {"self-distillation, live batch norm": 5e-5}


def command(data_dir, workdir, stage, *options):
    stage, *more = STAGES[stage]
    config = f"--config=configs/gta5_to_cityscapes.py:size=miniature,stage={stage}"
    where = (f"--config.data_dir={data_dir}", f"--workdir={workdir}")
    if stage == "self_distillation":
        more.append(f"--config.teacher_from={data_dir.parent / 'reference' / 'adversarial'}")
    return ("-m", "fada_jax.train", config, *where, *TINY, *more, *options)


def run(arguments, processes=1, devices=1):
    """Runs a command in processes of so many forced devices; returns what process 0 printed."""
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{before} --xla_force_host_platform_device_count={devices}"
    try:
        started = Run(arguments, processes)
    finally:
        os.environ["XLA_FLAGS"] = before
    if any(started.wait()):
        raise RuntimeError(started.report())
    return started.lines


def arrays(workdir):
    """Every array of the last checkpoint, by name."""
    arrays = {}
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("model", "training"):
            folder = workdir / "checkpoints" / str(STEPS) / item
            tree = reader.metadata(folder).item_metadata.tree
            options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            for path, leaf in jax.tree.leaves_with_path(
                reader.restore(folder, ocp.args.PyTreeRestore(restore_args=options))
            ):
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf, np.float64)
    return arrays


def log(workdir):
    """Losses, gradient norms and numbers of skipped steps, by step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    kept = ("loss", "grad_norm", "skipped")
    return {(line["step"], key): x for line in lines for key, x in line.items() if key.startswith(kept)}


def difference(one, other):
    """The largest relative difference of two runs: of any array, by its norm, or of any logged number."""
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    # Groups of arrays that go together: a single bias near zero has no relative size.
    largest = 0.0
    for group in {name.split("[")[0] + name.split("]")[0] for name in a}:
        x, y = (np.concatenate([np.ravel(v) for k, v in t.items() if k.split("[")[0] + k.split("]")[0] == group])
                for t in (a, b))  # fmt: skip
        largest = max(largest, np.linalg.norm(x - y) / max(np.linalg.norm(x), 1e-30))
    x, y = log(one), log(other)
    assert x.keys() == y.keys()
    return float(max([largest, *(abs(x[k] - y[k]) / max(abs(x[k]), 1e-30) for k in x)]))


def make_references(out):
    """Data, and every stage in one process on one device."""
    interruptions.cache_compiled(out, os.environ.__setitem__)
    data_dir = out / "data" if (out / "data").exists() else interruptions.make_data(out)
    for stage in STAGES:
        if stage != "adversarial, resumed":
            run(command(data_dir, out / "reference" / stage, stage))
    return data_dir


def compare(out, stage, mesh, processes):
    """Relative difference of a stage on a mesh in so many processes to one process."""
    workdir = out / "runs" / f"{stage}-{mesh}-{processes}"
    reference = out / "reference" / stage.removesuffix(", resumed")
    if stage.endswith("resumed"):  # What one process on one device began.
        shutil.copytree(reference, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    # Of one process several devices, so that a mesh has something to share.
    devices = 2 if processes == 1 else 1
    lines = run(command(out / "data", workdir, stage, *MESHES[mesh]), processes, devices)
    assert ("steps 2 to 4" if stage.endswith("resumed") else "steps 0 to 4") in "\n".join(lines)
    if stage == "NaN skipped":
        assert log(workdir)[STEPS, "skipped"] == 1 and log(workdir)[1, "skipped"] == 0
    result = difference(reference, workdir)
    shutil.rmtree(workdir)
    return result


def share_of(out, what, processes):
    """What a command about a finished stage gives in so many processes, as numbers by name."""
    trained, folder = out / "reference" / "adversarial", out / f"{what}{processes}"
    folder.mkdir()
    if what == "evaluation":
        run(("-m", "fada_jax.evaluate", f"--workdir={trained}", f"--output={folder}/s.json"), processes)
        return np.array(json.loads((folder / "s.json").read_text())["confusion"])
    if what == "class centre distance":
        source = out / "reference" / "source, validated"
        places = (f"--workdir={out}", f"--output={folder}/d", f"--data_dir={out}/data", source, trained)
        run(("scripts/ccd.py", *places), processes)
        stages = json.loads((folder / "d.json").read_text())["stages"]
        return np.array([stage[part]["mean"] for stage in stages.values() for part in ("source", "target", "both")])
    photos = out / "raw" / "cityscapes" / "leftImg8bit" / "val"
    run(
        ("-m", "fada_jax.predict", f"--workdir={trained}", f"--out={folder}", "--save_probabilities", photos), processes
    )
    return np.stack([np.load(path) for path in sorted(folder.rglob("*_probabilities.npy"))])


def end_by(out, place, how, victim, processes=2):
    """Seconds from the failure of a process to the end of the last one; checks what each one says.

    Raises:
      AssertionError: a process that says nothing, more than a line, or that it has succeeded.
    """
    workdir, moment = out / f"ended-{place}-{how}-{victim}", out / "moment"
    moment.unlink(missing_ok=True)
    trained = out / "reference" / "adversarial"
    if place == "evaluation":
        arguments = ("fada_jax.evaluate", f"--workdir={trained}", f"--output={workdir}.json")
    elif place == "prediction":
        photos = out / "raw" / "cityscapes" / "leftImg8bit" / "val"
        arguments = ("fada_jax.predict", f"--workdir={trained}", f"--out={workdir}", photos)
    else:
        stage = "self-distillation, live batch norm" if place == "labelling" else "adversarial"
        _, *arguments = command(out / "data", workdir, stage)
    os.environ["HOST_FAILURE_AT"] = str(moment)
    run = Run(("tests/host_failure.py", place, how, victim, *arguments), processes)
    statuses = run.wait(300)
    assert moment.exists(), run.report()
    seconds = time.time() - float(moment.read_text())
    for number, (status, file) in enumerate(zip(statuses, run.errors, strict=True)):
        file.seek(0)
        text = file.read()
        if number == victim and how != "refusal":
            assert status == (-9 if how == "kill" else 1), (status, text)
        else:
            assert status in (1, peers.ABORTED) and one_error(text), (status, text)
            wanted = "disk is full" if number == victim else "another process of this run has ended"
            assert wanted in text, text
    return seconds


def write(part, table):
    """Writes a table of the documentation."""
    path = ROOT / "docs" / "results" / "hosts.json"
    tables = json.loads(path.read_text()) if path.exists() else {}
    tables["command"] = "python tests/hosts.py --out=DIR --write"
    tables["machine"] = "two CPU cores with other work beside it"
    tables[part] = {"date": time.strftime("%Y-%m-%d"), **table}
    path.write_text(json.dumps(tables, indent=1) + "\n")


ENDS = (("kill", 0), ("kill", 1), ("refusal", 1), ("defect", 0))
COMMANDS = ("evaluation", "class centre distance", "prediction")


def measure_ends(out):
    rows = []
    for place in host_failure.PLACES:
        rows.append([place, *(round(end_by(out, place, how, victim), 1) for how, victim in ENDS)])
        print(rows[-1], flush=True)
    columns = ["one of two ends while", *(f"{how}/{victim}" for how, victim in ENDS)]
    return {"columns": columns, "formats": ["", *[".1f"] * len(ENDS)], "rows": rows}


def measure_commands(out):
    rows = []
    for what in COMMANDS:
        one, *others = (share_of(out, what, n) for n in PROCESSES)
        rows.append([what, *(float(np.abs(x - one).max() / np.abs(one).max()) for x in others)])
        print(rows[-1], flush=True)
    return {"columns": ["", *map(str, PROCESSES[1:])], "formats": ["", ".0e", ".0e"], "rows": rows}


def measure_matrix(out):
    rows = []
    for stage in STAGES:
        rows.append([stage, *(compare(out, stage, mesh, n) for mesh in MESHES for n in PROCESSES)])
        print(rows[-1], flush=True)
    columns = ["stage", *(f"{mesh}/{n}" for mesh in MESHES for n in PROCESSES)]
    return {"columns": columns, "formats": ["", *[".0e"] * 9], "rows": rows}


PARTS = {"matrix": measure_matrix, "commands": measure_commands, "ends": measure_ends}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    out = options.out.absolute()
    make_references(out)
    for part in options.parts:
        table = PARTS[part](out)
        if options.write:
            write(part, table)


if __name__ == "__main__":
    main()
