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
from commands import ROOT, environment, one_error

from fada_jax.input_pipeline import conversion, pseudo_labels
from fada_jax.input_pipeline.pseudo_labels import PseudoLabels
from fada_jax.training import checkpoints

CONFIG = "configs/gta5_to_cityscapes.py:size=miniature,stage=adaptation"


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(count, *arguments, expect=0):
    """Runs a command in ``count`` processes that find each other; returns what each printed, or its one error."""
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
        assert process.returncode == expect, errors[-3000:]
    return [one_error(errors) if expect else output for output, errors in results]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    for name, make in (("gta5", raw_trees.gta5), ("cityscapes", raw_trees.cityscapes)):
        conversion.convert(conversion.Conversion(name, make(root / name)), root / "data")
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


SIZES = ("--config.source.size=(48,32)", "--config.target.size=(48,24)", "--config.eval.size=(48,24)")


def test_devices_that_processes_cannot_share_are_refused(data_dir, tmp_path):
    options = (f"--config={CONFIG}", f"--config.data_dir={data_dir}", *SIZES, f"--workdir={tmp_path}/w")
    for error in run(2, "fada_jax.train", *options, "--config.num_devices=1", expect=1):
        assert "config.num_devices=1 must take as many devices of each of the 2 processes" in error
    assert not (tmp_path / "w" / "checkpoints").exists()


def labels_of(path):
    """Pseudo labels by name."""
    file, labels = PseudoLabels(path), {}
    for name in file._places:
        labels[name] = np.asarray(file.read(name))
    return labels


@pytest.mark.slow  # tests/test_hosts.py trains on such labels, too.
def test_two_processes_share_the_labelling(data_dir, tmp_path):
    teacher = ("--config.total_steps=1", *SIZES, f"--workdir={tmp_path}/teacher")
    run(1, "fada_jax.train", f"--config={CONFIG}", f"--config.data_dir={data_dir}", *teacher)
    options = (
        f"--config={CONFIG.replace('adaptation', 'self_distillation')}", f"--config.data_dir={data_dir}",
        f"--config.teacher_from={tmp_path}/teacher", "--config.total_steps=2", "--config.eval_batch_size=2",
        "--config.target.size=(64,32)", "--config.target.crop=(64,32)", "--config.eval.size=(64,32)",
        "--config.generator_optimizer.kind=sgd", "--config.pseudo_labels.keep=0.5",
    )  # fmt: skip
    for count in (1, 2):
        printed = run(count, "fada_jax.train", *options, f"--workdir={tmp_path}/{count}")
        assert "labelled 6 target images (64x32, seen at 48x24)" in printed[0]
    paths = [tmp_path / str(count) / "pseudo_labels.tfrecord" for count in (1, 2)]
    one, two = map(labels_of, paths)
    assert pseudo_labels.provenance(paths[0]) == pseudo_labels.provenance(paths[1])
    assert list(one) == list(two) and len(one) == 6
    assert np.mean([one[name] == two[name] for name in one]) >= 0.999
    assert 0.2 < np.mean([one[name] != 255 for name in one]) < 0.9
    models = [checkpoints.load_model(tmp_path / str(count)) for count in (1, 2)]
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(model.params)]) for model in models]
    assert np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]) < 1e-5
