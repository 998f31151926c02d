"""Trains one stage: source, adversarial or self_distillation. The same command resumes where it stopped.

  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=source --workdir=W/source
  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=adversarial --workdir=W/adversarial \\
      --config.init_from=W/source
  python -m fada_jax.train --config=configs/gta5_to_cityscapes.py:stage=self_distillation \\
      --workdir=W/self_distillation --config.teacher_from=W/adversarial

--dry_run compiles the step from the config's shapes, without data, and prints parameter counts, shapes, the sharding of
every array that is split, and the FLOPs and memory of a step.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fada_jax import (
    checkpoints,
    classes,
    cli,
    evaluate,
    files,
    handovers,
    loop,
    run_log,
    self_distillation,
    settings,
    sharding,
    steps,
    workdirs,
)
from fada_jax.errors import UserError
from fada_jax.models import compute_dtype, interchange

States = dict[str, steps.TrainState]


def is_adversarial(config: ConfigDict) -> bool:
    """Whether the config's step has a discriminator; with lambda 0 it has no effect on G and is left out."""
    return config.stage == "adversarial" and config.lambda_adv > 0


def create_states(config: ConfigDict) -> States:
    """Freshly initialised TrainStates of a stage; traceable."""
    spec = settings.model_spec(config)
    g_key, d_key = jax.random.split(jax.random.key(config.seed))
    states = {"generator": steps.create_generator(spec, settings.optimizer_spec(config, "generator"), g_key)}
    if is_adversarial(config):
        generator, method = states["generator"], settings.method(config)
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        maps = jax.eval_shape(functools.partial(generator.apply_fn, train=False), generator.variables, images)
        states["discriminator"] = steps.create_discriminator(
            method.num_outputs(spec.num_classes),
            jax.eval_shape(method.discriminator_input, *maps).shape[-1],
            settings.optimizer_spec(config, "discriminator"),
            d_key,
            widths=tuple(config.discriminator.widths),
            dtype=compute_dtype(spec.dtype),
        )
    return states


def make_step(config: ConfigDict) -> Callable[[States, Any], tuple[States, dict[str, jax.Array]]]:
    """The pure step of a stage over ``{"generator", "discriminator"}`` and a batch with ``source`` and ``target``."""
    preprocessing = settings.preprocessing(config)
    # Where devices share the rows of an image, each holds a block of them already.
    block_rows = config.loss_block_rows if config.mesh.spatial == 1 else 0
    memory = {"accumulate_steps": config.accumulate_steps, "block_rows": block_rows}
    guard = loop.skip_non_finite if config.on_non_finite == "skip" else lambda step: step
    if is_adversarial(config):
        method = settings.method(config)

        def adversarial(states: States, batch: Any) -> tuple[States, dict[str, jax.Array]]:
            generator, discriminator, metrics = steps.adversarial_step(
                states["generator"],
                states["discriminator"],
                batch["source"],
                batch["target"],
                preprocessing=preprocessing,
                method=method,
                lambda_adv=config.lambda_adv,
                **memory,
            )
            return {"generator": generator, "discriminator": discriminator}, metrics

        return guard(adversarial)
    # Without adaptation the adversarial stage is the control: its own settings, the source half of its batch.
    temperature = config.knowledge.temperature if config.stage == "adversarial" else 1.0

    def supervised(states: States, batch: Any) -> tuple[States, dict[str, jax.Array]]:
        generator, metrics = steps.supervised_step(
            states["generator"], batch["source"], preprocessing=preprocessing, temperature=temperature, **memory
        )
        return {"generator": generator}, metrics

    return guard(supervised)


def streams(config: ConfigDict, pseudo_labels: str = "") -> dict[str, tuple[Any, int]]:
    """Streams of a stage's batch by name, each with its share of the batch size."""
    from fada_jax.input_pipeline.stream import Stream

    if config.stage == "self_distillation":
        return {"source": (make_stream(config.target, pseudo_labels=pseudo_labels), config.batch_size)}
    if config.stage == "source":
        return {"source": (make_stream(config.source), config.batch_size)}
    half = config.batch_size // 2
    result: dict[str, tuple[Stream, int]] = {"source": (make_stream(config.source), half)}
    if is_adversarial(config):
        result["target"] = (make_stream(config.target, labels=False, role="target"), half)
    return result


def make_stream(
    config: ConfigDict, *, labels: bool = True, augment: bool = True, pseudo_labels: str = "", role: str = ""
) -> Any:
    """The pipeline's ``Stream`` of a stream config."""
    from fada_jax.input_pipeline.augmentation import Augment
    from fada_jax.input_pipeline.stream import Stream

    augmentation = Augment(
        flip=config.flip,
        scale=tuple(config.scale) or None,
        crop=tuple(config.crop) or None,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
        jitter_first=config.get("jitter_first", False),  # Earlier versions had no such key, and jittered last.
    )
    return Stream(
        config.dataset,
        config.split,
        tuple(config.size),
        city=config.city,
        augment=augmentation if augment else Augment(),
        sampling=config.sampling if augment else "uniform",
        sampling_temperature=config.sampling_temperature if augment else 1.0,
        labels=labels and not pseudo_labels,
        pseudo_labels=pseudo_labels,
        role=role,
    )


def check_streams(config: ConfigDict, pseudo_labels: str, mesh: Any) -> dict[str, int]:
    """Refuses streams of a stage that cannot be read or that the mesh cannot split.

    Returns:
      images of each stream by name.

    Raises:
      UserError: see above.
    """
    from fada_jax.input_pipeline import streams as input_streams

    class_set, images = classes.get_class_set(config.class_set), {}
    for name, (stream, size) in streams(config, pseudo_labels).items():
        sharding.check_batch("config.batch_size (per stream)", size, mesh, config.accumulate_steps)
        sharding.check_height(f"{stream.dataset}/{stream.split}", (stream.augment.crop or stream.size)[1], mesh)
        input_streams.check(config.data_dir, stream, class_set)
        images[name] = input_streams.num_examples(config.data_dir, stream)
    if config.eval_every:
        input_streams.check(config.data_dir, make_stream(config.eval, augment=False), class_set)
    return images


def read_batches(
    config: ConfigDict, pseudo_labels: str, class_set: classes.ClassSet, start: int
) -> Iterator[dict[str, Any]]:
    """This process's share of the stage's batches from step ``start`` on."""
    from fada_jax.input_pipeline import streams as input_streams

    iterators = {
        name: input_streams.train_batches(
            config.data_dir,
            stream,
            class_set=class_set,
            batch_size=size,
            seed=config.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            damaged_records=config.damaged_records,
        )
        for name, (stream, size) in streams(config, pseudo_labels).items()
    }
    for parts in zip(*iterators.values(), strict=False):
        for name, part in zip(iterators, parts, strict=True):
            handovers.note("batch", stream=name, **{key: handovers.size(x.shape[1:3]) for key, x in part.items()})
        yield dict(zip(iterators, parts, strict=True))


def batch_shapes(config: ConfigDict) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of a stage's batch, without data."""
    result = {}
    plan = {"source": config.target if config.stage == "self_distillation" else config.source}
    count = config.batch_size if config.stage != "adversarial" else config.batch_size // 2
    if is_adversarial(config):
        plan["target"] = config.target
    for name, stream in plan.items():
        width, height = tuple(stream.crop) or tuple(stream.size)
        result[name] = {"image": jax.ShapeDtypeStruct((count, height, width, 3), jnp.uint8)}
        if name == "source":
            result[name]["label"] = jax.ShapeDtypeStruct((count, height, width), jnp.uint8)
    return result


def compile_step(config: ConfigDict, mesh: Any) -> tuple[States, dict, Any]:
    """The step of a config compiled ahead of time from shapes alone.

    Returns:
      shapes of the states and of a batch, with their shardings, and the compiled step.
    """
    states = jax.eval_shape(lambda: create_states(config))
    shardings = sharding.by_size(mesh, states)
    states = sharding.placed(states, shardings)
    shapes = sharding.placed_batch(mesh, batch_shapes(config))
    step = jax.jit(make_step(config), donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    return states, shapes, sharding.on_mesh(mesh, step.lower)(states, shapes).compile()


def dry_run(config: ConfigDict) -> None:
    """Compiles one step from shapes alone and prints what it would train and what that takes."""
    mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    for name, stream in batch_shapes(config).items():
        count, height = stream["image"].shape[:2]
        sharding.check_batch(f"config.batch_size ({name})", count, mesh, config.accumulate_steps)
        sharding.check_height(f"config.{name}", height, mesh)
    began = time.perf_counter()
    states, shapes, compiled = compile_step(config, mesh)
    seconds = time.perf_counter() - began
    print(f"{config.task} {config.stage} ({config.method}), {config.model.backbone}, class set {config.class_set}")
    for name, stream in shapes.items():
        for key, value in stream.items():
            print(f"  {name} {key}: {value.dtype}{list(value.shape)}")
    generator = states["generator"]
    for name, stream in shapes.items():
        images = jax.ShapeDtypeStruct(stream["image"].shape, jnp.float32)
        logits, features = jax.eval_shape(
            functools.partial(generator.apply_fn, train=False), generator.variables, images
        )
        print(f"  {name} features: {features.dtype}{list(features.shape)}, logits: {logits.dtype}{list(logits.shape)}")
        if "discriminator" in states:
            d = states["discriminator"]
            read = jax.eval_shape(settings.method(config).discriminator_input, logits, features)
            d_logits = jax.eval_shape(d.apply_fn, {"params": d.params}, read)
            print(f"  {name} discriminator logits: {d_logits.dtype}{list(d_logits.shape)}")
    for name, state in states.items():
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
        print(f"  {name}: {count:,} parameters, {size / 2**20:,.0f} MiB with optimizer state")
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"  {mesh.size} {jax.default_backend()} device(s): {axes}")
    for path, x in jax.tree.leaves_with_path({**states, **shapes}):
        if not x.sharding.is_fully_replicated:
            print(f"    {jax.tree_util.keystr(path, simple=True, separator='/')}: {list(x.shape)} as {x.sharding.spec}")
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    held, temporary = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    moved = cost.get("bytes accessed", math.nan) / 2**30
    print(f"  compiled in {seconds:.0f} s; on each device, for one step:")
    print(f"    {cost.get('flops', math.nan) / 1e12:,.3f} TFLOP, {moved:,.1f} GiB moved")
    print(f"    {held + temporary:,.2f} GiB at its peak: states and batch {held:,.2f}, temporary {temporary:,.2f}")


def pseudo_label_file(config: ConfigDict, workdir: Path) -> str:
    """Where self-distillation keeps what its teacher saw; '' in other stages."""
    return str(workdir / "pseudo_labels.tfrecord") if config.stage == "self_distillation" else ""


def check(config: ConfigDict, workdir: Path, *, data: bool = True) -> tuple[dict[str, Any], dict[str, int]]:
    """Refuses what can be refused about a stage while nothing is written.

    Args:
      config: of the stage.
      workdir: of the stage, absolute.
      data: look at the config's data sets, too.

    Returns:
      ``meta`` of the last checkpoint there ({} without one), and images of each stream of the batch.

    Raises:
      UserError: a wrong config, a workdir of another config, missing data or other data than it began with.
    """
    settings.check(config)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: the workdir must be a folder")
    mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    stored: dict[str, Any] = {}
    for step in reversed(checkpoints.available_steps(workdir)):
        if not checkpoints.damage(checkpoints.directory(workdir) / str(step), ("meta",)):
            stored = checkpoints.read_meta(workdir, step)
            # A class map may have moved; what counts is the classes in it.
            # ImageNet weights have no classes of their own.
            predicted = checkpoints.class_set(stored) or classes.get_class_set(config.class_set)
            names = {"class_set": list(predicted.names)}
            now = {"class_set": list(classes.get_class_set(config.class_set).names)}
            now |= _same_parents(config, stored, workdir)
            settings.refuse_other_config(stored["config"] | names, settings.plain(config) | now, workdir)
            break
    images = check_streams(config, pseudo_label_file(config, workdir), mesh) if data else {}
    before = stored.get("images") or images
    if before != images:
        raise UserError(
            f"{workdir} was trained on {before} images, config.data_dir={config.data_dir} holds {images}: give it the "
            "data it began with or use another --workdir"
        )
    return stored, images


def _same_parents(config: ConfigDict, stored: Mapping[str, Any], workdir: Path) -> dict[str, str]:
    """Refuses to go on from weights or labels whose origin has changed since the workdir began.

    Args:
      stored: ``meta`` of a checkpoint in ``workdir``.

    Returns:
      the config's keys whose folders hold the weights that the workdir began with, spelled as they were then.

    Raises:
      UserError: other weights lie there now.
    """
    same = {}
    for key, parent in stored.get("parents", {}).items():
        if not config[key] or not checkpoints.available_steps(config[key]):
            continue  # What is gone cannot be compared, and what is renamed differs from the stored config.
        model = checkpoints.load_model(config[key])
        if model.digest != parent["digest"]:
            raise UserError(
                f"{workdir} was made from step {parent['step']} of config.{key}={config[key]}, where other weights lie "
                f"now (step {model.step}): remove {workdir} to have it made again, or use another --workdir"
            )
        same[key] = stored["config"][key]
    return same


def load_parents(config: ConfigDict, *, needs_teacher: bool) -> dict[str, checkpoints.Model]:
    """The models that a stage is made from, by the config key that names them.

    Args:
      needs_teacher: the stage labels its images with ``teacher_from``, which must then be named.

    Raises:
      UserError: one is missing or does not fit the config.
    """
    parents = {}
    if config.init_from:
        parents["init_from"] = load_compatible(config, config.init_from, "config.init_from", any_head=True)
    if needs_teacher or (config.stage == "self_distillation" and config.teacher_from):
        parents["teacher_from"] = load_teacher(config)
    return parents


def initial_states(config: ConfigDict, mesh: Any, model: checkpoints.Model | None = None) -> States:
    """States at step 0 on the mesh: random, then the weights of ``model`` or else of ``init_from``.

    Raises:
      UserError: the weights do not fit the config.
    """
    if model is None and config.init_from:
        model = load_compatible(config, config.init_from, "config.init_from", any_head=True)
    abstract = jax.eval_shape(lambda: create_states(config))
    shardings = sharding.by_size(mesh, abstract)
    # Leaves alone: every call of create_states makes optimizers of its own, which JAX takes for another structure.
    # What runs once is compiled without optimisation on CPUs, in a quarter of the time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    leaves = jax.jit(
        lambda: jax.tree.leaves(create_states(config)),
        out_shardings=jax.tree.leaves(shardings),
        compiler_options=options,
    )()
    states = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    if model is None:
        return states
    params = dict(model.params)
    if not model.class_set:
        params["classifier"] = states["generator"].params["classifier"]
    batch_stats = _fitting_statistics(states["generator"], params, model.batch_stats)
    states["generator"] = steps.replace_weights(states["generator"], *batch_stats)
    return jax.device_put(states, shardings)


def _fitting_statistics(state: steps.TrainState, params: Any, batch_stats: Any) -> tuple[Any, Any]:
    """Weights in the layout of ``state``: live batch norm has its scale and bias among the parameters."""
    abstract = jax.tree.structure({"params": state.params, "batch_stats": state.collections.get("batch_stats", {})})
    if abstract == jax.tree.structure({"params": params, "batch_stats": batch_stats}):
        return params, batch_stats
    if "folded" in state.collections:
        extractor, statistics = _move_norms(params["feature_extractor"], batch_stats["feature_extractor"], live=False)
    else:
        extractor, statistics = _move_norms(params["feature_extractor"], batch_stats["feature_extractor"], live=True)
    return {**params, "feature_extractor": extractor}, {"feature_extractor": statistics}


def _move_norms(params: Any, statistics: Any, *, live: bool) -> tuple[dict, dict]:
    """Moves ``scale`` and ``bias`` of every batch norm into (live) or out of (frozen) the parameters."""
    params, moved = dict(params), {}
    for name, value in statistics.items():
        if "var" in value:
            held = {**value, **params.pop(name, {})}
            names = ("mean", "var") if live else ("scale", "bias", "mean", "var")
            moved[name] = {key: held[key] for key in names}
            if live:
                params[name] = {key: held[key] for key in ("scale", "bias")}
        else:
            params[name], moved[name] = _move_norms(params[name], value, live=live)
    return params, moved


def load_compatible(config: ConfigDict, workdir: str, key: str, *, any_head: bool = False) -> checkpoints.Model:
    """The last model of ``workdir``, refused where it cannot serve this config.

    Args:
      key: config key to name in errors.
      any_head: accept weights without a trained classifier.

    Raises:
      UserError: no checkpoint, or another class set, preprocessing or network; both values are named.
    """
    try:
        model = checkpoints.load_model(workdir)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    spec = settings.model_spec(config)
    pairs = [("preprocessing", model.preprocessing, settings.preprocessing(config))]
    if model.class_set or not any_head:
        theirs, ours = model.class_set or classes.ClassSet("", (), ()), classes.get_class_set(config.class_set)
        pairs += [("class set", theirs.name, ours.name), ("classes", theirs.names, ours.names)]
    pairs += interchange(model.spec, spec)
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UserError(f"{key}={workdir}: its {name} is {theirs!r}, this config's is {ours!r}")
    return model


def load_teacher(config: ConfigDict) -> checkpoints.Model:
    """The adapted model of ``teacher_from``.

    Raises:
      UserError: none is named, or it does not fit the config.
    """
    if not config.teacher_from:
        raise UserError(
            "config.teacher_from is empty: name the workdir of the adversarial stage that labels the target"
        )
    return load_compatible(config, config.teacher_from, "config.teacher_from")


def label_provenance(config: ConfigDict, teacher: checkpoints.Model) -> dict[str, Any]:
    """All that decides the pseudo labels of a stage, in JSON types."""
    from fada_jax.input_pipeline import streams as input_streams

    selection = settings.selection(config)
    stream = make_stream(config.target, labels=False, augment=False)
    provenance = {
        "teacher": teacher.digest,
        "teacher_step": teacher.step,
        "classes": teacher.class_set.names,
        "selection": dataclasses.asdict(selection),
        "scales": config.multi_scale if selection.multi_scale else (1.0,),
        "teacher_size": teacher.config["eval"]["size"],
        "label_size": config.target.size,
        "images": [config.target.dataset, config.target.city, config.target.split],
        "num_images": input_streams.num_examples(config.data_dir, stream),
    }
    return json.loads(json.dumps(provenance))


def pseudo_labels_of(
    config: ConfigDict,
    workdir: Path,
    stored: Mapping[str, Any],
    teacher: checkpoints.Model | None,
    mesh: Any,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Sees to it that the file of pseudo labels is there, and holds the labels that the stage is to learn.

    Args:
      stored: ``meta`` of the checkpoint that training goes on from; {} where it begins.
      teacher: of ``load_parents``, if it was loaded.

    Returns:
      provenance of the labels.

    Raises:
      UserError: the stage has begun with other labels, or there is no teacher to make them.
    """
    from fada_jax.input_pipeline import pseudo_labels

    path, begun_with = Path(pseudo_label_file(config, workdir)), stored.get("pseudo_labels")
    lies_there = pseudo_labels.provenance(path) if path.exists() else None
    if begun_with is not None and lies_there is not None:
        if lies_there != begun_with:
            raise UserError(
                f"{path} does not hold the labels that {workdir} was trained on "
                f"({_differing(begun_with, lies_there)}): put the old file back or use another --workdir"
            )
        return lies_there
    if stored and lies_there == {}:
        log(f"{path} is of an earlier version, which did not write down where its labels came from")
        return lies_there
    teacher = teacher or load_teacher(config)
    wanted = label_provenance(config, teacher)
    if begun_with and wanted != begun_with:
        raise UserError(
            f"{path} is gone and cannot be made again as it was ({_differing(begun_with, wanted)}): "
            "use another --workdir"
        )
    if lies_there != wanted:
        if lies_there is not None:
            log(f"{path} holds other labels ({_differing(lies_there, wanted)}): they are made again")
        with handovers.within(stage="pseudo labels"):
            make_pseudo_labels(config, teacher, path, wanted, mesh, log)
    return wanted


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Keys of two provenances that differ, with both values where they are short."""
    if not before:
        return "of an earlier version, which did not write down where its labels came from"
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    shown = (f"{key}: {str(before.get(key))[:40]} there, {str(now.get(key))[:40]} wanted" for key in keys)
    return "; ".join(shown)


def make_pseudo_labels(
    config: ConfigDict,
    teacher: checkpoints.Model,
    path: Path,
    provenance: Mapping[str, Any],
    mesh: Any,
    log: Callable[[str], None],
) -> None:
    """Labels the target training images with ``teacher`` in the file ``path``; every process takes part.

    The teacher sees them at the size that it is tested at, and its softmax is upsampled to the size of the student's
    images, as released.
    """
    from fada_jax.input_pipeline import pseudo_labels
    from fada_jax.input_pipeline import streams as input_streams

    stream = make_stream(config.target, labels=False, augment=False)
    stream = dataclasses.replace(stream, size=tuple(teacher.config["eval"]["size"]), role="teacher")
    teacher = checkpoints.in_dtype(teacher, "auto")
    read = functools.partial(
        input_streams.eval_batches,
        config.data_dir,
        stream,
        class_set=teacher.class_set,
        batch_size=config.eval_batch_size * mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        damaged_records=config.damaged_records,
    )
    labelled = self_distillation.pseudo_labels(
        teacher,
        read,
        input_streams.names(config.data_dir, stream),
        size=tuple(config.target.size)[::-1],
        mesh=mesh,
        selection=settings.selection(config),
        scales=tuple(config.multi_scale),
        log=log,
    )
    if jax.process_index():
        collections.deque(labelled, maxlen=0)
    else:
        count = pseudo_labels.write(path, labelled, provenance)
        sizes = "{}x{}, seen at {}x{}".format(*config.target.size, *stream.size)
        log(f"labelled {count} target images ({sizes}) with step {teacher.step} of {config.teacher_from}: {path}")
    multihost_utils.sync_global_devices("pseudo labels")


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    batches: Iterable[Mapping[str, Any]] | None = None,
    log: Callable[[str], None] = print,
) -> States:
    """Trains a stage to ``config.total_steps`` in ``workdir``, from its last good checkpoint where there is one.

    Args:
      config: of ``configs/``.
      workdir: receives ``checkpoints/``, ``config.json``, ``metrics.jsonl``, TensorBoard events, ``lock``, and
        ``non_finite.jsonl`` where a step made a NaN or an infinity.
      batches: one batch a step from step 0 on, shaped like ``batch_shapes``, instead of the config's data sets; those
        that a resumed run has used already are passed over. Self-distillation finds its pseudo labels in them.
      log: receives the progress lines.

    Returns:
      the final states.

    Raises:
      UserError: anything the user can mend; the last checkpoint is kept.
    """
    workdir = files.local(workdir, "--workdir").absolute()
    # Everything that can be refused is refused here, before anything is written.
    stored, images = check(config, workdir, data=batches is None)
    mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    class_set, pseudo_labels = classes.get_class_set(config.class_set), pseudo_label_file(config, workdir)
    parents: dict[str, checkpoints.Model] = {}
    states, made_from = None, {"parents": stored.get("parents", {})}
    if not stored:
        parents = load_parents(config, needs_teacher=batches is None and bool(pseudo_labels))
        made_from["parents"] = {key: {"step": m.step, "digest": m.digest} for key, m in parents.items()}
        states = initial_states(config, mesh, parents.get("init_from"))
    with workdirs.hold(workdir), handovers.within(stage=config.stage, method=config.method):
        start = checkpoints.last_good(workdir, log)
        if start is not None:
            shapes = jax.eval_shape(lambda: create_states(config))
            states = checkpoints.restore_states(workdir, start, shapes, sharding.by_size(mesh, shapes))
        elif states is None:
            states = initial_states(config, mesh)
        begins, start = start is None, start or 0
        if start >= config.total_steps:
            log(f"{config.stage}: finished, {start} steps in {workdir}")
            return states
        _announce(config, stored, begins, log)
        if jax.process_index() == 0:
            evaluate.write_text(workdir / "config.json", json.dumps(settings.plain(config), indent=2) + "\n")
        if batches is None and pseudo_labels:
            made_from["pseudo_labels"] = pseudo_labels_of(
                config, workdir, {} if begins else stored, parents.get("teacher_from"), mesh, log
            )
        multihost_utils.sync_global_devices("workdir")
        meta = checkpoints.make_meta(
            settings.plain(config),
            settings.model_spec(config),
            settings.preprocessing(config),
            class_set,
            images,
            **made_from,
        )
        given = batches is not None
        if given:
            batches = itertools.islice(batches, start, None)
        else:
            batches = read_batches(config, pseudo_labels, class_set, start)
        put = functools.partial(sharding.put_batch, mesh=mesh)
        batches = loop.prefetch(batches, lambda batch: {name: put(part) for name, part in batch.items()})
        step_fn = sharding.on_mesh(
            mesh,
            jax.jit(
                make_step(config),
                donate_argnums=0,
                out_shardings=(jax.tree.map(lambda x: x.sharding, states), sharding.replicated(mesh)),
            ),
        )
        picture = None if given else target_pictures(config, class_set, mesh, log)
        plan = loop.Plan(start, config.total_steps, config.log_every, config.checkpoint_every)
        log(
            f"{config.stage} ({config.method}): steps {start} to {config.total_steps}, global batch "
            f"{config.batch_size} on {mesh.size} {jax.default_backend()} device(s) in "
            f"{compute_dtype(config.model.dtype)}"
        )
        kept = {"keep": config.keep_checkpoints, "keep_every": config.keep_every, "scored": bool(config.eval_every)}
        with contextlib.ExitStack() as stack:
            should_stop = stack.enter_context(stop_signals())
            run = stack.enter_context(run_log.open_log(workdir, plan, settings.plain(config), log))
            save = stack.enter_context(checkpoints.writing(workdir, meta, **kept))

            def on_checkpoint(step: int, states: States) -> None:
                scores = None
                if config.eval_every and (step % config.eval_every == 0 or step == config.total_steps):
                    scores = {"miou": validate(config, states, step, mesh)}
                    where = f"{config.eval.dataset}/{config.eval.split}"
                    log(f"{config.stage} {step:>6}/{plan.total}  mIoU {scores['miou']:.2f} on {where}")
                save(step, states, scores)
                if picture:
                    run.picture(step, picture(states["generator"].variables))

            states, step = loop.fit(
                states,
                step_fn,
                batches,
                plan,
                on_log=run.metrics,
                on_checkpoint=on_checkpoint,
                on_non_finite=lambda step, names: note_non_finite(
                    config, workdir, step, names, {} if given else streams(config, pseudo_labels), log
                ),
                should_stop=should_stop,
            )
    if step < config.total_steps:
        raise UserError(f"stopped at step {step} of {config.total_steps}, saved: run the same command again to go on")
    return states


def _announce(config: ConfigDict, stored: Mapping[str, Any], begins: bool, log: Callable[[str], None]) -> None:
    """Says what a run goes on with that differs from what it began with, and what a new one starts from."""
    written, now = stored.get("versions", {}), checkpoints.library_versions()
    if other := [f"{name} {written[name]}" for name in written if written[name] != now.get(name)]:
        log(f"begun with {', '.join(other)}: with what is installed now the last bits may differ")
    dtype, dtype_now = stored.get("compute_dtype"), compute_dtype(config.model.dtype)
    if dtype and dtype != dtype_now:
        log(f"begun in {dtype}, goes on in {dtype_now} here (config.model.dtype={config.model.dtype})")
    added = settings.flat(settings.plain(config)).keys() - settings.flat(stored.get("config", {})).keys()
    if stored and added:
        log(f"begun by an earlier version without {', '.join(sorted(added))}: this config's values hold from here on")
    if begins and not config.init_from:
        log(f"{config.stage}: config.init_from is empty, so it starts from random weights")


def note_non_finite(
    config: ConfigDict,
    workdir: Path,
    step: int,
    metrics: list[str],
    streams: Mapping[str, tuple[Any, int]],
    log: Callable[[str], None],
) -> None:
    """Appends a step that made a NaN or an infinity to ``workdir/non_finite.jsonl``, with the names of its images.

    Args:
      step: its number, from 1.
      metrics: those that are not finite; none where only the update is.
      streams: of the batch, each with its share of the batch size.
    """
    from fada_jax.input_pipeline import streams as input_streams

    choice = {"class_set": classes.get_class_set(config.class_set), "seed": config.seed, "step": step - 1}
    images = {
        name: input_streams.batch_names(config.data_dir, stream, batch_size=size, **choice)
        for name, (stream, size) in streams.items()
    }
    path = workdir / "non_finite.jsonl"
    if jax.process_index() == 0:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "metrics": metrics, "images": images}) + "\n")
    log(f"step {step} made a NaN or an infinity: its images are listed in {path}")


def validate(config: ConfigDict, states: States, step: int, mesh: Any) -> float:
    """mIoU in percent of the states of a stage on ``config.eval``, single scale.

    Raises:
      UserError: missing data, or a split without labels.
    """
    from fada_jax.input_pipeline import streams as input_streams

    class_set = classes.get_class_set(config.class_set)
    model = checkpoints.Model(
        settings.model_spec(config),
        settings.preprocessing(config),
        class_set,
        None,
        None,
        settings.plain(config),
        step,
    )
    batches = input_streams.eval_batches(
        config.data_dir,
        make_stream(config.eval, augment=False),
        class_set=class_set,
        batch_size=config.eval_batch_size * mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        damaged_records=config.damaged_records,
    )
    return evaluate.evaluate(model, batches, mesh=mesh, variables=states["generator"].variables)["miou"]


def target_pictures(
    config: ConfigDict, class_set: classes.ClassSet, mesh: Any, log: Callable[[str], None]
) -> Callable[[Any], np.ndarray] | None:
    """``run_log.target_pictures`` of the config's target; None where none are wanted or the target is not there."""
    if not config.log_images:
        return None
    stream = make_stream(config.target, labels=False, augment=False, role="pictures")
    model = settings.model_spec(config), class_set, settings.preprocessing(config)
    try:
        return run_log.target_pictures(config.data_dir, stream, *model, config.log_images, mesh)
    except UserError as error:
        log(f"TensorBoard gets no target images: {error}")
        return None


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """While open, SIGTERM and SIGINT only set a flag, so that the loop can save before it leaves.

    Several processes leave after the same step: JAX passes a SIGTERM that one of them gets to all.
    """
    together, seen = jax.process_count() > 1, []

    def note(number: int, _: Any) -> None:
        seen.append(number)
        if together:
            signal.raise_signal(signal.SIGTERM)

    # In several processes SIGTERM is JAX's own, and Ctrl-C is passed on as one.
    ours = (signal.SIGINT,) if together else (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {number: signal.signal(number, note) for number in ours}
    except ValueError:  # Not the main thread, in a notebook for instance: signals stay as they are.
        previous = {}

    try:
        yield lambda step: multihost_utils.reached_preemption_sync_point(step) if together else bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    config, _, _ = cli.config()
    settings.check(config)
    cli.join_processes()
    if flags.FLAGS.dry_run:
        dry_run(config)
        return
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: the folder that receives the checkpoints")
    train(config, flags.FLAGS.workdir)
    print(f"done: {flags.FLAGS.workdir}")


if __name__ == "__main__":
    cli.define_config()
    cli.define_processes()
    flags.DEFINE_string("workdir", "", "Folder of this stage: checkpoints, metrics, TensorBoard events.")
    flags.DEFINE_bool("dry_run", False, "Compile the step from shapes, print what it takes, train nothing.")
    cli.run(main)
