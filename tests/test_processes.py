"""Two real processes on this machine against one: the same training, checkpoints that either reads, the same scores."""

import json
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import raw_trees
from commands import ROOT, environment

from fada_jax import checkpoints
from input_pipeline import builders

CONFIG = "configs/gta5_to_cityscapes.py:size=miniature,stage=adversarial"


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(count, *arguments):
    """Runs a command in ``count`` processes that find each other; returns what each printed."""
    together = [()]
    if count > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        together = [
            (f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}") for i in range(count)
        ]
    running = [start(*arguments, *flags) for flags in together]
    results = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, results, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output for output, _ in results]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    for name, make in (("gta5", raw_trees.gta5), ("cityscapes", raw_trees.cityscapes)):
        builders.convert(builders.Conversion(name, make(root / name)), root / "data")
    return root / "data"


def test_two_processes_train_resume_and_score_like_one(data_dir, tmp_path):
    options = (
        f"--config={CONFIG}", f"--config.data_dir={data_dir}", "--config.log_every=1", "--config.checkpoint_every=3",
        "--config.generator_optimizer.kind=sgd", "--config.discriminator_optimizer.kind=sgd",
        "--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)",
    )  # fmt: skip
    for count in (1, 2):
        printed = run(count, "fada_jax.train", *options, f"--workdir={tmp_path}/{count}", "--config.total_steps=5")
        assert "done" in printed[0] and not any("loss" in text for text in printed[1:])  # Process 0 speaks for all.
    models = [checkpoints.load_model(tmp_path / str(count)) for count in (1, 2)]
    one, two = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(model.params)]) for model in models)
    assert models[1].step == 5
    assert np.linalg.norm(two - one) / np.linalg.norm(one) < 1e-5
    logged = [json.loads(line)["step"] for line in (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5]
    # What two processes wrote one goes on from, and the other way round they score it.
    shutil.rmtree(tmp_path / "2" / "checkpoints" / "5")
    again = run(1, "fada_jax.train", *options, f"--workdir={tmp_path}/2", "--config.total_steps=5")
    assert "steps 3 to 5" in again[0]
    scores = []
    for count in (1, 2):
        output = tmp_path / f"scores{count}.json"
        run(count, "fada_jax.evaluate", f"--workdir={tmp_path}/1", "--multi_scale", f"--output={output}")
        scores.append(json.loads(output.read_text()))
    assert scores[0] == scores[1] and scores[0]["num_images"] > 0
