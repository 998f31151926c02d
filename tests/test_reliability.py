"""Storage faults, kept checkpoints, locks and numbers going wrong: nothing good is lost, and what is bad is named."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
from commands import ROOT, environment, on_devices
from interruptions import make_data
from PIL import Image
from test_bad_inputs import tiny_config, write_checkpoints

from fada_jax import classes, cli, distributed, files
from fada_jax import config as schema
from fada_jax.errors import UserError
from fada_jax.input_pipeline import conversion, records, streams
from fada_jax.input_pipeline.stream import Stream
from fada_jax.stages import logs, program, run, workdirs
from fada_jax.training import checkpoints, checksums, loop, saving


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("reliability"))


@contextlib.contextmanager
def mounted(path, *options):
    """A tmpfs at ``path``, where this process may mount one."""
    path.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(path)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def states_of(config):
    return jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda: program.create_states(schema.read(config)))
    )


def meta_of(config):
    class_set = classes.get_class_set(config.class_set)
    return saving.make_meta(
        schema.read(config).plain(),
        schema.read(config).model,
        schema.read(config).preprocessing,
        class_set,
        {"source": 6},
    )


def files_of(checkpoint):
    return sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != "commit_success.txt")


def test_last_best_and_every_checkpoint_are_kept(tmp_path):
    config = tiny_config()
    states, scores = states_of(config), {2: 10.0, 3: 50.0, 6: 40.0}
    with saving.writing(tmp_path, meta_of(config), keep=2, keep_every=4, scored=True) as save:
        for step in range(1, 5):
            save(step, states, {"miou": scores[step]} if step in scores else None)
    # The policy goes on in the next run, with the scores of the last.
    with saving.writing(tmp_path, meta_of(config), keep=2, keep_every=4, scored=True) as save:
        for step in range(5, 8):
            save(step, states, {"miou": scores[step]} if step in scores else None)
    assert checkpoints.available_steps(tmp_path) == [3, 4, 6, 7]
    assert checkpoints.recorded_scores(tmp_path) == {3: 50.0, 6: 40.0}
    assert checkpoints.resolve_step(tmp_path, "best") == 3
    meta = checkpoints.read_meta(tmp_path, 7)
    assert (meta.next_batch, meta.images, meta.versions["jax"]) == (7, {"source": 6}, jax.__version__)


def test_every_damaged_file_of_a_checkpoint_is_noticed(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3)
    checkpoint = checkpoints.directory(tmp_path) / "3"
    assert checksums.damage(checkpoint) == ""
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=checkpoint, capture_output=True)
    assert sums.returncode == 0, sums.stderr
    rng, noticed = np.random.default_rng(0), 0
    for path in files_of(checkpoint):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        for broken in (bytes(flipped), content[: len(content) // 2], b"", None):
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            if path.name != "_CHECKPOINT_METADATA":  # Times that orbax notes, of no consequence.
                said = checksums.damage(checkpoint)
                assert path.name in said or (path.name == "SHA256SUMS" and said)
                noticed += 1
            path.write_bytes(content)
    assert noticed >= 40 and checksums.damage(checkpoint) == ""
    (checkpoint / "model" / "more").write_bytes(b"x")
    assert "model/more" in checksums.damage(checkpoint)
    (checkpoint / "model" / "more").unlink()
    for name in (".DS_Store", "model/.nfs0001", "Thumbs.db"):
        (checkpoint / name).write_bytes(b"x")
    assert checksums.damage(checkpoint) == "" and checkpoints.load_model(tmp_path).step == 3


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path):
    write_checkpoints(tmp_path, tiny_config(), 3, 6)
    (checkpoints.directory(tmp_path) / "6" / "_CHECKPOINT_METADATA").write_bytes(b"\x00")
    assert checkpoints.load_model(tmp_path).step == 6
    files_of(checkpoints.directory(tmp_path) / "6" / "training")[0].write_bytes(b"")
    said = []
    assert checkpoints.last_good(tmp_path, said.append) == 3
    assert "checkpoints/6 is damaged (training/" in said[0] and "kept as 6.damaged" in said[0]
    assert checkpoints.available_steps(tmp_path) == [3]
    # It does not stand in the way of the new one.
    write_checkpoints(tmp_path, tiny_config(), 6)
    assert checkpoints.last_good(tmp_path, said.append) == 6 and len(said) == 1
    assert (checkpoints.directory(tmp_path) / "6.damaged").is_dir()


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path):
    config = tiny_config()
    with mounted(tmp_path / "small", "-o", "size=6m"):
        write_checkpoints(tmp_path / "small", config, 3)
        good = checkpoints.load_model(tmp_path / "small")
        for wait in (False, True):
            taken = tmp_path / "small" / "other"
            taken.write_bytes(bytes(_free(tmp_path / "small") - 8192))
            with pytest.raises(UserError, match=r"\(No space left .*\); the last good one is 3: make") as error:
                with saving.writing(tmp_path / "small", meta_of(config), wait=wait) as save:
                    save(6, states_of(config))
                    save(9, states_of(config))
            assert "\n" not in str(error.value)
            assert checkpoints.available_steps(tmp_path / "small") == [3]
            taken.unlink()
            again = checkpoints.load_model(tmp_path / "small")
            jax.tree.map(np.testing.assert_array_equal, good.params, again.params)
        # With room again the same command goes on, and what was half written is gone.
        write_checkpoints(tmp_path / "small", config, 6)
        assert sorted(p.name for p in checkpoints.directory(tmp_path / "small").iterdir()) == ["3", "6"]


def _free(path):
    status = os.statvfs(path)
    return status.f_bavail * status.f_bsize


def test_a_full_disk_stops_conversion_and_reports(tmp_path, data_dir):
    raw = raw_trees.gta5(tmp_path / "raw", 40)
    with mounted(tmp_path / "small", "-o", "size=60k"):
        (tmp_path / "small" / "scores.json").write_text("old")
        with pytest.raises(SystemExit) as stop, contextlib.redirect_stderr(_Lines()) as errors:
            _as_command(lambda: conversion.convert(conversion.Conversion("gta5", raw), tmp_path / "small" / "data"))
        assert stop.value.code == 1 and len(errors.lines) == 1 and "No space left" in errors.lines[0]
        assert not records.folder(tmp_path / "small" / "data", "gta5").exists()
        with pytest.raises(SystemExit), contextlib.redirect_stderr(_Lines()) as errors:
            _as_command(lambda: files.write_text(tmp_path / "small" / "scores.json", "new" * 100_000))
        assert "No space left" in errors.lines[0]
        assert (tmp_path / "small" / "scores.json").read_text() == "old"


class _Lines:
    def __init__(self):
        self.lines = []

    def write(self, text):
        self.lines += [line for line in text.splitlines() if line]

    def flush(self):
        pass


def _as_command(work):
    handler, argv = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["command"]
    try:
        cli.run(lambda arguments: work())
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)


def test_a_read_only_workdir_is_refused(tmp_path):
    write_checkpoints(tmp_path / "disk", tiny_config(), 3)
    with mounted(tmp_path / "fixed"):
        subprocess.run(["cp", "-r", tmp_path / "disk" / "checkpoints", tmp_path / "fixed"], check=True)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "fixed"], check=True)
        with pytest.raises(UserError, match=r"it cannot be written \(Read-only file system\)"):
            with workdirs.hold(tmp_path / "fixed"):
                pass
        # What only reads works.
        assert checkpoints.load_model(tmp_path / "fixed").step == 3


def test_two_runs_cannot_share_a_workdir(tmp_path):
    code = """import sys
from fada_jax.stages import workdirs
with workdirs.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run is at work in it"):
        with workdirs.hold(tmp_path):
            pass
    first.kill()
    first.wait()
    with workdirs.hold(tmp_path):  # No lock outlives its process.
        pass


def _poisoned(values, **options):
    """Runs a loop over batches; a state is the sum of them, and the metric is the batch."""
    saved, noted, logs = [], [], {}
    step = options.pop("step", lambda state, batch: (state + batch, {"loss": batch}))
    plan = loop.Plan(0, len(values), options.pop("log_every", 4), options.pop("checkpoint_every", 3))
    run = lambda: loop.fit(  # noqa: E731
        jnp.float32(0),
        step,
        iter([jnp.float32(v) for v in values]),
        plan,
        on_log=lambda step, metrics: logs.__setitem__(step, metrics),
        on_checkpoint=lambda step, state: saved.append((step, float(state))),
        on_non_finite=lambda step, names: noted.append((step, names)),
    )
    return run, saved, noted, logs


def test_a_checkpoint_between_a_nan_and_its_notice_is_not_written():
    run, saved, noted, _ = _poisoned([1, 1, 1, 1, np.inf, 1, 1, 1], log_every=8, checkpoint_every=3)
    with pytest.raises(UserError, match="loss became NaN or infinite at step 5"):
        run()
    assert saved == [(3, 3.0)] and noted == [(5, ["loss"])]


def test_states_that_break_under_finite_metrics_are_noticed():
    step = jax.jit(lambda state, batch: (state * 1e20 + batch, {"loss": batch}))
    run, saved, noted, _ = _poisoned([1, 1, 1, 1], step=step)
    with pytest.raises(UserError, match="the parameters became NaN or infinite at step 3"):
        run()
    assert saved == [] and noted == [(3, [])]


def test_bad_steps_are_skipped_and_counted():
    values = [1, np.nan, 2, 4, np.inf, 8, 16, 32]
    skipping = jax.jit(loop.skip_non_finite(lambda state, batch: (state + batch, {"loss": 2 * batch})))
    run, saved, noted, logs = _poisoned(values, step=skipping)
    states, done = run()
    assert (float(states), done) == (63.0, 8)
    assert saved == [(3, 3.0), (6, 15.0), (8, 63.0)]
    assert noted == [(2, ["loss"]), (5, ["loss"])]
    assert (logs[4]["loss"], logs[4]["skipped"], logs[8]["skipped"]) == (pytest.approx(14 / 3), 1, 1)
    run, _, _, _ = _poisoned([1] + [np.nan] * 30, step=skipping)
    with pytest.raises(UserError, match="20 steps in a row were skipped"):
        run()


def test_skipping_changes_no_good_step():
    """Under either policy the same batches give the same bits."""
    step = lambda state, batch: (state * 1.1 + jnp.sin(batch), {"loss": batch})  # noqa: E731
    plain, skipping = jax.jit(step), jax.jit(loop.skip_non_finite(step))
    a = b = jnp.linspace(0, 1, 100, dtype=jnp.float32)
    for i in range(10):
        a, _ = plain(a, jnp.float32(i))
        b, metrics = skipping(b, jnp.float32(i))
        assert not metrics["skipped"]
    np.testing.assert_array_equal(a, b)


def test_a_line_of_the_log_cut_short_is_dropped(tmp_path):

    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    config = schema.read(tiny_config()).plain()
    with logs.open_log(tmp_path, loop.Plan(2, 9, 1, 1), config, lambda line: None, images_per_step=8):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
def test_training_stops_at_a_nan_and_names_its_images(data_dir, tmp_path):
    config = tiny_config(data_dir=str(data_dir), total_steps=8, checkpoint_every=1, log_every=1, log_images=0)
    config.generator_optimizer.update(kind="sgd", learning_rate=1e30, momentum=0.0)
    with pytest.raises(UserError, match="became NaN or infinite at step"):
        run.train(schema.read(config), tmp_path, log=lambda line: None)
    noted = json.loads((tmp_path / "non_finite.jsonl").read_text())
    assert len(noted["images"]["source"]) == 8
    good = checkpoints.available_steps(tmp_path)
    assert all(number < noted["step"] for number in good)
    for number in good:
        params = checkpoints.load_model(tmp_path, str(number)).params
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_the_images_of_a_bad_step_are_written_down(data_dir, tmp_path):
    config = tiny_config(data_dir=str(data_dir))
    said = []
    stage = run._Run(schema.read(config), tmp_path, distributed.make_mesh(), said.append, data_sets=True)
    for number in (1, 2):
        run._note_non_finite(stage, number, ["loss_seg"])
    lines = [json.loads(line) for line in (tmp_path / "non_finite.jsonl").read_text().splitlines()]
    assert [(line["step"], line["metrics"]) for line in lines] == [(1, ["loss_seg"]), (2, ["loss_seg"])]
    # Six images are an epoch: of two batches of eight the first twelve places are two epochs.
    names = lines[0]["images"]["source"] + lines[1]["images"]["source"]
    assert len(names) == 16 and set(names[:6]) == set(names[6:12]) == {f"{i:05d}" for i in range(1, 7)}
    assert "step 1 " in said[0] and str(tmp_path / "non_finite.jsonl") in said[0]


def restored_on_meshes(workdir):
    """How many leaves of step 3 were split over devices, and the sum of all leaves, by mesh."""
    config = schema.stored(checkpoints.read_meta(workdir, 3).config, 19)
    shapes = jax.eval_shape(lambda: program.create_states(config))
    restored = []
    for axes in ({"fsdp": 4}, {"fsdp": 2, "spatial": 2}, {}):
        shardings = distributed.by_size(distributed.make_mesh(0, **axes), shapes)
        leaves = jax.tree.leaves(checkpoints.restore_states(workdir, 3, shapes, shardings))
        split = sum(not x.sharding.is_fully_replicated for x in leaves)
        restored.append([split, sum(float(np.asarray(x, np.float64).sum()) for x in leaves)])
    return restored


def test_a_checkpoint_restores_on_other_meshes(tmp_path):
    config = tiny_config()
    rng = np.random.default_rng(0)
    states = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), states_of(config))
    with saving.writing(tmp_path, meta_of(config), wait=True) as save:
        save(3, states)
    restored = on_devices(4, "test_reliability", f"restored_on_meshes({str(tmp_path)!r})")
    expected = sum(float(np.asarray(x, np.float64).sum()) for x in jax.tree.leaves(states))
    assert [total for _, total in restored] == [pytest.approx(expected, rel=1e-9)] * 3
    assert restored[0][0] > 5 and restored[1][0] > 5 and restored[2][0] == 0


def test_batch_names_are_those_of_the_batches(data_dir):
    """Told apart by their pixels, which differ from image to image."""
    stream = Stream("cityscapes", "train", (64, 32))
    options = {"class_set": classes.get_class_set("cityscapes19"), "batch_size": 4, "seed": 3}
    raw = data_dir.parent / "raw" / "cityscapes" / "leftImg8bit" / "train"
    pixels = {
        path.stem.removesuffix("_leftImg8bit"): np.asarray(Image.open(path).convert("RGB"))
        for path in raw.rglob("*.png")
    }
    batches = streams.train_batches(data_dir, stream, start_step=2, **options)
    for number in (2, 3):
        batch, names = next(batches), streams.batch_names(data_dir, stream, step=number, **options)
        for image, name in zip(batch["image"], names, strict=True):
            np.testing.assert_array_equal(image, pixels[name])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(data_dir, tmp_path, number):
    config = tiny_config(data_dir=str(data_dir), total_steps=1000, checkpoint_every=1000, log_every=1, log_images=0)
    when = []

    def log(line):
        if "loss" in line and not when:
            when.append(time.monotonic())
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    with pytest.raises(UserError, match=r"stopped at step \d+ of 1000, saved: run the same command again"):
        run.train(schema.read(config), tmp_path, log=log)
    assert time.monotonic() - when[0] < 30
    assert checkpoints.available_steps(tmp_path) == [len((tmp_path / "metrics.jsonl").read_text().splitlines())]
