"""The whole way on paths of buckets, with faults and without, beside the same on local paths: all arrays are equal."""

import json
import signal

import buckets
import interruptions
import numpy as np
import pytest
import raw_trees
from commands import command
from interruptions import STAGES, STEPS, differences, recipe_command

from fada_jax import files, images
from fada_jax.input_pipeline import conversion, records
from fada_jax.storage import caches, lines
from fada_jax.training import checkpoints

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature,stage=source"
OPTIONS = (
    "--config.source.size=(48,32)", "--config.eval.size=(48,24)", "--config.total_steps=4", "--config.log_every=1",
    "--config.checkpoint_every=2", "--config.eval_every=4",
)  # fmt: skip


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def store(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, buckets.store(request.param) as running:
        for key, value in running.variables.items():
            patch.setenv(key, value)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        buckets.forget_clients()
        interruptions.cache_compiled(tmp_path_factory.mktemp("compiled"), patch.setenv)
        yield running
    buckets.forget_clients()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for name, make in (("gta5", raw_trees.gta5), ("cityscapes", raw_trees.cityscapes)):
        make(root / name)
    return root


def stored_in(split, i):
    return {key: value for key, value in split.read(i).items() if key != "place"}


def test_converted_trained_and_resumed_as_on_a_disk(store, raw, tmp_path):
    base = files.place(f"{store.base}/short")
    caches.uploaded(raw, base / "raw")
    for name in ("gta5", "cityscapes"):
        for place, source in ((base, base / "raw"), (tmp_path, raw)):
            conversion.convert(conversion.Conversion(name, source / name), place / "data")
        one, two = (records.open_split(place / "data", name, "train") for place in (base, tmp_path))
        assert [stored_in(one, i) for i in range(6)] == [stored_in(two, i) for i in range(6)]
    train = ("-m", "fada_jax.train", CONFIG, *OPTIONS)
    command(*train, f"--config.data_dir={tmp_path}/data", f"--workdir={tmp_path}/w")
    # With faults, and once more from its first checkpoint.
    remote = (*train, f"--config.data_dir={base}/data", f"--workdir={base}/w", f"--cache_dir={tmp_path}/cache")
    store.set(faults=0.1, most=sum(store.set()["counts"].values()) + 8)
    command(*remote)
    assert sum(store.set(faults=0.0, most=None)["counts"].values()) > 0
    (base / "w" / "checkpoints" / "4" / "commit_success.txt").unlink()  # As a kill while it was written leaves it.
    assert "steps 2 to 4" in command(*remote)
    assert checkpoints.available_steps(base / "w") == [2, 4]
    one, two = (checkpoints.load_model(place / "w") for place in (tmp_path, base))
    assert one.digest == two.digest
    logged = [json.loads(line)["step"] for line in lines.read(base / "w" / "metrics.jsonl")]
    assert logged == [1, 2, 3, 4] and any("tfevents" in name for name in files.tree(base / "w"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", [0.0, 0.03])
def test_a_recipe_and_all_that_follows_are_as_on_a_disk(store, raw, tmp_path, faults):
    base, results = files.place(f"{store.base}/whole{faults}"), {}
    caches.uploaded(raw, base / "raw")
    store.set(faults=faults, counts=dict.fromkeys(buckets.KINDS, 0))
    for place, source in ((tmp_path, raw), (base, base / "raw")):
        for name in ("gta5", "cityscapes"):
            convert = ("scripts/convert_dataset.py", f"--dataset={name}", f"--raw_dir={source}/{name}", "--workers=1")
            command(*convert, f"--data_dir={place}/data")
        command(*recipe_command(f"{place}/data", f"{place}/run"))
        command("-m", "fada_jax.evaluate", f"--workdir={place}/run", "--multi_scale", f"--output={place}/scores.json")
        inputs = f"{source}/cityscapes/leftImg8bit/val"
        command("-m", "fada_jax.export", f"--workdir={place}/run", f"--output={place}/artifact")
        command("-m", "fada_jax.convert_weights", "export", f"--workdir={place}/run", f"--output={place}/m.safetensors")
        for model in ("run", "artifact", "m.safetensors"):
            command("-m", "fada_jax.predict", f"--workdir={place}/{model}", f"--out={place}/{model}_out", inputs)
        command("scripts/ccd.py", f"--workdir={place}/run")
        scores = json.loads(files.read_text(place / "scores.json"))
        rows = json.loads(files.read_text(place / "run" / "results.json"))["rows"]
        distances = json.loads(files.read_text(place / "run" / "ccd.json"))
        assert {distances["stages"][name].pop("stage") for name in list(distances["stages"])} == {
            str(place / "run" / name) for name in distances["stages"]
        }
        labels = {
            f"{model}/{name}": images.read_image(place / f"{model}_out" / name).tolist()
            for model in ("run", "artifact", "m.safetensors")
            for name in files.tree(place / f"{model}_out")
            if name.endswith("label.png")
        }
        results[place] = (scores, rows, distances, labels)
    counts = store.set(faults=0.0)["counts"]
    print(f"{store.scheme}, faults {faults}: {counts}")
    assert bool(sum(counts.values())) == bool(faults)
    assert results[tmp_path] == results[base] and len(results[base][3]) == 9
    assert {stage: differences(tmp_path / "run" / stage, base / "run" / stage) for stage in STAGES} == {
        stage: [] for stage in STAGES
    }
    assert checkpoints.available_steps(base / "run" / "source")[-1] == STEPS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_recipe_that_is_killed_in_a_bucket_ends_as_an_undisturbed_one_on_a_disk(store, tmp_path):
    data_dir, base = interruptions.make_data(tmp_path), files.place(f"{store.base}/killed")
    interruptions.finish(recipe_command(data_dir, tmp_path / "whole"))
    caches.uploaded(data_dir, base / "data")
    command_line = recipe_command(base / "data", base / "run")
    fell = interruptions.torment(command_line, base / "run", np.random.default_rng(0), kills=10)
    assert sum(fell.values()) == 10
    assert {stage: differences(tmp_path / "whole" / stage, base / "run" / stage) for stage in STAGES} == {
        stage: [] for stage in STAGES
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_of_two_hosts_saves_once_in_the_bucket_and_the_command_goes_on(store, raw, tmp_path, victim):
    base, data = files.place(f"{store.base}/signal{victim}"), tmp_path / "data"
    for name in ("gta5", "cityscapes"):
        conversion.convert(conversion.Conversion(name, raw / name), data)
    train = (
        *("-m", "fada_jax.train", CONFIG, *OPTIONS, f"--config.data_dir={data}", f"--workdir={base}/w"),
        "--config.checkpoint_every=100000", "--config.eval_every=0", "--config.total_steps=100000",
        "--config.generator_optimizer.schedule_steps=100000",
    )  # fmt: skip
    begun = interruptions.Run(train, 2)
    assert begun.until(lambda: begun.steps() >= 3)
    begun.processes[victim].send_signal(signal.SIGTERM)
    assert begun.wait(120) == [1, 1]
    (saved,) = checkpoints.available_steps(base / "w")
    assert f"stopped at step {saved} of 100000, saved" in begun.report()
    again = interruptions.Run(train, 1)  # On another mesh, too.
    assert again.until(lambda: again.steps() >= 1)
    assert f"steps {saved} to 100000" in "\n".join(again.lines)
    again.processes[0].send_signal(signal.SIGTERM)
    assert again.wait(120) == [1]
    assert checkpoints.available_steps(base / "w")[0] == saved
