"""One stage from its config to its last checkpoint; the same call goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from fada_jax import distributed, files, handovers
from fada_jax.config import Config, flat
from fada_jax.errors import UserError
from fada_jax.evaluation import scoring
from fada_jax.methods import CycleGan, States
from fada_jax.models import compute_dtype
from fada_jax.stages import beginning, data, labelling, logs, parents, pictures, program, statistics, workdirs
from fada_jax.stages.beginning import Begun
from fada_jax.stages.inspection import Inspection, inspected
from fada_jax.storage import lines
from fada_jax.stored import Meta
from fada_jax.training import checkpoints, goodput, loop, saving

Log = Callable[[str], None]


def make_mesh(config: Config) -> jax.sharding.Mesh:
    """The mesh of a stage."""
    return distributed.make_mesh(config.num_devices, config.mesh.fsdp, config.mesh.spatial)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the parts of ``train`` share.

    Attributes:
      config, workdir, mesh, log: of the stage.
      data_sets: batches come from the config's data sets.
      inspection: what is written about its steps.
      account: of where time goes.
    """

    config: Config
    workdir: Path
    mesh: jax.sharding.Mesh
    log: Log
    data_sets: bool
    inspection: Inspection = dataclasses.field(default_factory=Inspection)
    account: goodput.Account = dataclasses.field(default_factory=goodput.Account)

    @property
    def pseudo_labels(self) -> str:
        return labelling.pseudo_label_file(self.config, self.workdir)


def train(
    config: Config,
    workdir: str | Path,
    *,
    batches: Iterable[Mapping[str, Any]] | None = None,
    log: Log = print,
    inspection: Inspection | None = None,
    began: float | None = None,
) -> States:
    """Trains a stage to ``config.total_steps`` in ``workdir``, from its last good checkpoint where there is one.

    Args:
      config: of the stage.
      workdir: receives ``checkpoints/``, ``config.json``, ``metrics.jsonl``, TensorBoard events, ``lock``, and
        ``non_finite.jsonl`` where a step made a NaN or an infinity.
      batches: one batch a step from step 0 on, shaped like ``data.batch_shapes``, instead of the config's data sets;
        those that a resumed run has used already are passed over. Self-distillation finds its pseudo labels in them.
      log: receives the progress lines.
      inspection: what is written about the steps, besides.
      began: when the command began, in seconds since 1970; None: now.

    Returns:
      the final states.

    Raises:
      UserError: anything the user can mend; the last checkpoint is kept.
    """
    account, inspection = goodput.Account(began), inspection or Inspection()
    workdir = files.place(workdir, "--workdir").absolute()

    # ---- What can be refused is refused before anything is written
    begun = beginning.check(config, workdir, data_sets=batches is None)
    inspection.check((begun.meta and begun.meta.next_batch) or 0, config.total_steps)
    run = _Run(config, workdir, make_mesh(config), log, batches is None, inspection, account)
    models, states = {}, None
    if not begun.meta:
        models = parents.load_parents(config, needs_teacher=run.data_sets and bool(config.kind.pseudo_labels))
        states = parents.initial_states(config, run.mesh, models.get("init_from"))

    with workdirs.hold(workdir), handovers.within(stage=config.stage, method=config.method):
        if beginning.changed(begun, workdir):  # By another run, before this one held it.
            begun = beginning.check(config, workdir, data_sets=batches is None)

        # ---- States
        last = checkpoints.last_good(workdir, log)
        states = _restored(run, last) if last is not None else states or parents.initial_states(config, run.mesh)
        start = last or 0
        if start >= config.total_steps:
            log(f"{config.stage}: finished, {start} steps in {workdir}")
            return states

        # ---- Workdir, labels and what a checkpoint says of itself
        _announce(run, begun.meta, begins=last is None)
        meta = _own(run, begun, models, begins=last is None)
        states = states if last is not None else _prepared(run, states)

        # ---- Data, step and loop
        states, done = _fit(run, states, _placed_batches(run, batches, start), start, meta)
    _say_end(run, done)
    return states


def _say_end(run: _Run, done: int) -> None:
    """Says where the time went.

    Raises:
      UserError: a signal has stopped the run before its last step.
    """
    total = run.config.total_steps
    run.log(f"{run.config.stage}: {goodput.summary(run.account.plain()['seconds'], run.account.starts)}")
    if done < total:
        multihost_utils.sync_global_devices("saved")  # Whoever is done earlier must not end before the last is.
        raise UserError(f"stopped at step {done} of {total}, saved: run the same command again to go on")


def _placed_batches(run: _Run, batches: Iterable[Mapping[str, Any]] | None, start: int) -> Iterable[Any]:
    """Batches from step ``start`` on, on the devices."""
    if batches is None:
        read: Iterable[Mapping[str, Any]] = data.read_batches(run.config, run.pseudo_labels, start, run.mesh)
    else:
        given = data.checked_batches(run.config, batches, distributed.readers(run.mesh)[1])
        read = itertools.islice(given, start, None)
    put = functools.partial(distributed.put_batch, mesh=run.mesh)
    return loop.prefetch(read, lambda batch: {name: put(part) for name, part in batch.items()})


def _restored(run: _Run, step: int) -> States:
    shapes = program.state_shapes(run.config)
    return checkpoints.restore_states(run.workdir, step, shapes, distributed.by_size(run.mesh, shapes))


def _announce(run: _Run, meta: Meta | None, *, begins: bool) -> None:
    """Says what a run goes on with that differs from what it began with, and what a new one starts from."""
    config, log = run.config, run.log
    if begins and not config.init_from:
        log(f"{config.stage}: config.init_from is empty, so it starts from random weights")
    if not meta:
        return
    written, now = meta.versions, saving.library_versions()
    if other := [f"{name} {written[name]}" for name in written if written[name] != now.get(name)]:
        log(f"begun with {', '.join(other)}: with what is installed now the last bits may differ")
    dtype, dtype_now = meta.compute_dtype, compute_dtype(config.model.dtype)
    if dtype and dtype != dtype_now:
        log(f"begun in {dtype}, goes on in {dtype_now} here (config.model.dtype={config.model.dtype})")
    added = flat(config.plain()).keys() - flat(meta.config).keys()
    if added:
        log(f"begun by an earlier version without {', '.join(sorted(added))}: this config's values hold from here on")


def _own(run: _Run, begun: Begun, models: Mapping[str, checkpoints.Model], *, begins: bool) -> Meta:
    """Writes whose the workdir is and missing labels of a teacher; returns ``meta`` of its checkpoints."""
    config = run.config
    origin: dict[str, Any] = {"parents": beginning.own(config, run.workdir, begun, models)}
    if run.data_sets and config.kind.pseudo_labels:
        with run.account.spent("labelling"):
            origin["pseudo_labels"] = labelling.ensure_pseudo_labels(
                config, run.workdir, None if begins else begun.meta, models.get("teacher_from"), run.mesh, run.log
            )
    if isinstance(config.training_method, CycleGan):
        origin["translator"] = config.training_method.translator(config.training_spec)
    multihost_utils.sync_global_devices("workdir")
    return saving.make_meta(config.plain(), config.model, config.preprocessing, config.classes, begun.images, **origin)


def _prepared(run: _Run, states: States) -> States:
    """States of step 0 with what the method finds out about the source."""
    with run.account.spent("input"):
        return statistics.with_statistics(run.config, states, run.log)


def _fit(run: _Run, states: States, batches: Iterable[Any], start: int, meta: Meta) -> tuple[States, int]:
    """The loop with its logs, checkpoints, scores and pictures; returns the states and the steps done."""
    config, mesh, workdir, log = run.config, run.mesh, run.workdir, run.log
    plan = loop.Plan(start, config.total_steps, config.log_every, config.checkpoint_every)
    images = data.stream_batch_size(config) * len(config.training_method.streams)
    jitted = program.jit_step(config, mesh, jax.tree.map(lambda x: x.sharding, states))
    picture = pictures.at_checkpoints(config, mesh, log) if run.data_sets else None
    log(
        f"{config.stage} ({config.method}): steps {start} to {config.total_steps}, global batch {config.batch_size} on "
        f"{mesh.size} {jax.default_backend()} device(s) in {compute_dtype(config.model.dtype)}"
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.account.spent("checkpoint"))  # The last are written when the others are closed.
        should_stop = stack.enter_context(distributed.stop_signals())
        opened = logs.open_log(workdir, plan, config.plain(), log, images_per_step=images, account=run.account)
        written = stack.enter_context(opened)
        step = stack.enter_context(inspected(run.inspection, jitted, start, workdir))
        kept, every, scored = config.keep_checkpoints, config.keep_every, bool(config.eval_every)
        writing = saving.writing(workdir, meta, keep=kept, keep_every=every, scored=scored)
        save = stack.enter_context(writing)

        def on_checkpoint(number: int, states: States) -> None:
            scores = None
            if config.eval_every and (number % config.eval_every == 0 or number == config.total_steps):
                with run.account.spent("evaluation"):
                    scores = {"miou": scoring.validate(config, states["generator"], number, mesh)["miou"]}
                name = f"{config.eval.dataset}/{config.eval.split}"
                log(f"{config.stage} {number:>6}/{plan.total}  mIoU {scores['miou']:.2f} on {name}")
            save(number, states, scores)
            if picture:
                with run.account.spent("evaluation"):
                    written.picture(number, picture(states["generator"].variables), pictures.tag(config))

        stack.enter_context(run.account.spent("steps"))
        return loop.fit(
            states,
            distributed.on_mesh(mesh, step),
            batches,
            plan,
            on_log=written.metrics,
            on_checkpoint=on_checkpoint,
            on_non_finite=functools.partial(_note_non_finite, run),
            should_stop=should_stop,
            spent=run.account.spent,
        )


def _note_non_finite(run: _Run, number: int, metrics: list[str]) -> None:
    """Appends a step that made a NaN or an infinity to ``non_finite.jsonl``, with the names of its images.

    Args:
      run: of the stage.
      number: of the step, from 1.
      metrics: those that are not finite; none where only the update is.
    """
    images = data.batch_names(run.config, run.pseudo_labels, number - 1) if run.data_sets else {}
    path = run.workdir / "non_finite.jsonl"
    if jax.process_index() == 0:
        with lines.appending(path) as file:
            file.add(json.dumps({"step": number, "metrics": metrics, "images": images}) + "\n")
    run.log(f"step {number} made a NaN or an infinity: its images are listed in {path}")
