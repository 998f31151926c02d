"""What a run writes down: metrics, hyperparameters and target images for TensorBoard, and Weights & Biases."""

import json
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from test_bad_inputs import tiny_config

from fada_jax import config as schema
from fada_jax.configs import gta5_to_cityscapes
from fada_jax.errors import UserError
from fada_jax.stages import beginning, logs
from fada_jax.training import loop

VALUES = {"loss_seg": 1.5, "steps_per_second": 4.0, "data_wait": 0.25}


def _events(folder):
    """Events of a TensorBoard file: length (8 bytes), checksum (4), the event, checksum (4)."""
    events = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def _config(**values):
    config = gta5_to_cityscapes.get_config("size=miniature")
    config.update(values)
    return schema.read(config).plain()


def _tags(events):
    return {value.tag: (event.step, value) for event in events for value in event.summary.value}


def test_metrics_images_and_hyperparameters_reach_their_files(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    lines = []
    with logs.open_log(tmp_path, loop.Plan(10, 40, 10, 20), _config(), lines.append, images_per_step=8) as run:
        run.metrics(20, VALUES)
        run.picture(20, np.full((4, 6, 3), 255, np.uint8))
    kept, new = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert kept == {"step": 10}
    assert new["step"] == 20 and new["images_per_second"] == 4.0 * 8
    assert 0.01 < new["host_memory"] < 1000
    assert set(new["time"]) == {"at", "starts", "seconds"} and new["goodput"] == 0
    tags = _tags(_events(tmp_path))
    step, loss = tags["loss_seg"]
    assert (step, loss.simple_value) == (20, 1.5) and "data_wait" in tags
    step, picture = tags["predictions/target_images"]
    assert (step, picture.image.height, picture.image.width) == (20, 4, 6)
    shown = tags["_hparams_/session_start_info"][1].SerializeToString()
    assert b"generator_optimizer.learning_rate" in shown and b"gta5_to_cityscapes" in shown
    assert lines == [line for line in lines if line.startswith("source     20/40  loss_seg 1.5000  4.00 steps/s")]


def test_wandb_is_asked_for_by_name_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, sorted(values))), finish=lambda: calls.append("finished")
    )
    fake = types.SimpleNamespace(init=lambda **given: calls.append(given) or run, Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        with logs.open_log(
            tmp_path, loop.Plan(0, 4, 2, 2), _config(wandb="streets"), lambda line: None, images_per_step=8
        ) as log:
            log.metrics(2, VALUES)
            log.picture(2, np.zeros((2, 2, 3), np.uint8))
    first, metrics, picture, finished, again = calls[:5]
    assert first["project"] == "streets" and first["config"]["seed"] == 0 and first["id"] == again["id"]
    assert metrics[0] == 2 and "loss_seg" in metrics[1] and picture[1] == ["predictions/target_images"]
    assert finished == "finished"


def test_missing_wandb_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config(wandb="streets")
    with pytest.raises(UserError, match=r"config.wandb='streets' needs wandb: pip install"):
        beginning.check(schema.read(config), tmp_path / "w", data_sets=False)
    assert not (tmp_path / "w").exists()
