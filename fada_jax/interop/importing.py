"""A weight file becomes the workdir of a stage, and every tensor of it and every array of ours is accounted for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fada_jax import config as schema
from fada_jax import files
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.interop import reading, torch_files, torch_optimizers, torch_tables
from fada_jax.interop.entries import CLASSIFIER, DISCRIMINATOR, FEATURE_EXTRACTOR, Report
from fada_jax.interop.reading import Description, ReleasedModel
from fada_jax.interop.tensors import first
from fada_jax.models import ModelSpec, interchange
from fada_jax.stages import workdirs
from fada_jax.stages.program import create_states
from fada_jax.stored import Meta
from fada_jax.training import checkpoints, saving
from fada_jax.training.states import TrainState, replace_weights


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of a file, and which of our arrays are not from it.

    Attributes:
      tensors: what became of every tensor.
      notes: lines for people on all that no tensor's name tells: the step, optimizers, the discriminator.
      left: sections that stay in the file.
    """

    tensors: Report
    notes: tuple[str, ...]
    left: tuple[str, ...]


# A stage's states ----------------------------------------------------------------------------------------------------


def import_states(file: Mapping[str, Any], config: Config) -> tuple[checkpoints.States, int, Account]:
    """TrainStates of a config's stage from a file, with every array of them accounted for.

    Weights, moments and step are those of the file. What it lacks is what ``create_states`` makes of the config:
    parameters from its seed, zero moments. Every schedule stands at the file's iteration.

    Returns:
      the states, on the host; the iteration, 0 where the file has none; and the account.

    Raises:
      UserError: something in the file does not fit the config.
    """
    spec, create = config.model, functools.partial(create_states, config)
    named = torch_optimizers.read_iteration(file)
    iteration = named or 0
    if not reading.is_own(file):
        torch_tables.check_backbone(file, spec)
    shapes = jax.eval_shape(create)
    left = _left_in_file(file, "discriminator" in shapes)
    notes = [_step_note(named, config.total_steps)]
    lacking = [] if reading.has_classifier(file) else ["head"]
    if "discriminator" in shapes and DISCRIMINATOR not in file:
        lacking.append("discriminator")
    # Not before the rest of the file is known to be good: it takes a while.
    fresh = functools.cache(functools.partial(_fresh, create, tuple(lacking)))

    generator = _without_weights(shapes["generator"], iteration)
    initial = fresh()["head"] if "head" in lacking else None
    params, batch_stats, report = reading.import_generator(file, spec, initial)
    opt_state = torch_optimizers.import_generator_optimizer(generator.opt_state, file, spec, iteration)
    states = {"generator": replace_weights(generator, params, batch_stats).replace(opt_state=opt_state)}
    if "head" in lacking:
        new = "classifier, fc6 and fc7" if spec.backbone == "vgg16" else "classifier"
        notes.append(f"{new}: not in the file, freshly initialised")

    if "discriminator" in shapes:
        discriminator = _without_weights(shapes["discriminator"], iteration)
        if "discriminator" in lacking:
            states["discriminator"] = discriminator.replace(params=fresh()["discriminator"])
            table = torch_tables.discriminator_table_of(discriminator.params)
            report += Report(initialised=tuple(entry.name for entry in table))
            notes.append(_discriminator_note(iteration))
        else:
            states["discriminator"], used = _discriminator(file, discriminator, iteration)
            report += used

    _check_complete(states, shapes)
    notes += _optimizer_notes(file, left, states, iteration)
    return states, iteration, Account(report, tuple(notes), left)


def _fresh(create: Callable[[], checkpoints.States], parts: Collection[str]) -> dict[str, Any]:
    """Freshly initialised parameters, on the host, of these parts alone: a large model need not exist twice.

    Args:
      create: all states of the stage; traceable.
      parts: 'head' for what no ImageNet model holds (the classifier, and VGG's fc6 and fc7), 'discriminator'.
    """

    def parameters() -> dict[str, Any]:
        states = create()
        params = states["generator"].params
        extractor = {name: value for name, value in params[FEATURE_EXTRACTOR].items() if name in ("fc6", "fc7")}
        fresh = {"head": {"params": {FEATURE_EXTRACTOR: extractor, CLASSIFIER: params[CLASSIFIER]}}}
        if "discriminator" in states:
            fresh["discriminator"] = states["discriminator"].params
        return {name: fresh[name] for name in parts}

    # XLA drops what is not asked for. As in stages.program: what runs once is compiled in a hurry on CPUs.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.device_get(jax.jit(parameters, compiler_options=options)())


def _discriminator(file: Mapping[str, Any], state: TrainState, iteration: int) -> tuple[TrainState, Report]:
    """State of D from the file and what became of its tensors; ``state``: its shapes and first optimizer state."""
    sizes = torch_tables.discriminator_sizes(state.params)
    params, report = torch_tables.import_discriminator(file, *sizes)
    opt_state = state.opt_state
    if torch_optimizers.OPTIMIZERS[DISCRIMINATOR] in file:
        opt_state = torch_optimizers.import_discriminator_optimizer(opt_state, file, params, iteration)
    return state.replace(params=params, opt_state=opt_state), report


def _without_weights(state: TrainState, iteration: int) -> TrainState:
    """Shapes of weights, and the optimizer's first state, zeros as optax makes it, its schedules at ``iteration``."""
    opt_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state.opt_state)
    return state.replace(step=np.int32(iteration), opt_state=torch_optimizers.set_schedules(opt_state, iteration))


def _check_complete(states: checkpoints.States, shapes: checkpoints.States) -> None:
    """Whether every array is from the file or initialised; anything else is a defect here, not the user's mistake."""
    for (path, x), shape in zip(jax.tree.leaves_with_path(states), jax.tree.leaves(shapes), strict=True):
        if not isinstance(x, np.ndarray | np.generic) or (x.shape, x.dtype) != (shape.shape, shape.dtype):
            raise TypeError(f"{jax.tree_util.keystr(path)} was neither read nor initialised")


def _left_in_file(file: Mapping[str, Any], has_discriminator: bool) -> tuple[str, ...]:
    """Sections of a file that nothing is read from."""
    if reading.is_own(file):
        return ()
    if not torch_tables.is_released(file):
        return tuple(str(key) for key in file if key != "state_dict") if "state_dict" in file else ()
    sections = [FEATURE_EXTRACTOR, CLASSIFIER]
    if has_discriminator and DISCRIMINATOR in file:
        # A fresh discriminator cannot go on with the moments of another.
        sections.append(DISCRIMINATOR)
    used = {"iteration", *sections, *(torch_optimizers.OPTIMIZERS[section] for section in sections)}
    return tuple(str(key) for key in file if key not in used)


# Notes for people ----------------------------------------------------------------------------------------------------


def _step_note(named: int | None, total: int) -> str:
    """Where training stands; ``named``: the file's iteration."""
    if named is None:
        return "step 0: the file names no iteration"
    if named > total:
        return (
            f"step {named} is beyond config.total_steps={total}: the workdir is to evaluate, to predict, for init_from "
            "and for teacher_from, not to train on"
        )
    return f"step {named} of {total}" + (": finished" if named == total else "")


def _discriminator_note(iteration: int) -> str:
    """Says that the discriminator is fresh."""
    note = "discriminator: not in the file, freshly initialised"
    if not iteration:
        return note
    return (
        f"{note} in the middle of the stage: to begin it with these weights, import them without --config and name "
        "that workdir in config.init_from"
    )


def _optimizer_notes(
    file: Mapping[str, Any], left: Collection[str], states: checkpoints.States, iteration: int
) -> Iterator[str]:
    """Where the state of each optimizer comes from."""
    optimizers = torch_optimizers.OPTIMIZERS.items()
    sections = [section for section, name in optimizers if name in file and name not in left]
    moments = {section: torch_optimizers.read_moments(file, section) for section in sections}
    extractor, classifier = FEATURE_EXTRACTOR in moments, CLASSIFIER in moments
    groups: dict[str, tuple[str, ...]] = {"G": (FEATURE_EXTRACTOR, CLASSIFIER)}
    if extractor != classifier:
        groups = {"F": (FEATURE_EXTRACTOR,), "C": (CLASSIFIER,)}
    if "discriminator" in states:
        groups["D"] = (DISCRIMINATOR,)
    for network, parts in groups.items():
        schedule = f"its schedule at step {iteration}"
        if parts[0] not in moments:
            yield f"optimizer of {network}: not in the file, starts from zero moments, {schedule}"
            continue
        untouched = sum(moments[section].untouched for section in parts)
        zeros = f", zero moments for the {untouched} tensors that had no step yet" if untouched else ""
        yield f"optimizer of {network}: from the file{zeros}, {schedule}"


def _norm_note(file: Mapping[str, Any], described: Description | None, spec: ModelSpec) -> str:
    """Says where batch norm is live in the file and frozen in the config, or the other way round."""
    if spec.backbone == "vgg16" or not torch_tables.is_released(file):
        return ""
    norm = described.spec.norm if described else reading.norm_of(file)
    return f"batch norm: {norm} in the file, {spec.norm} from now on" if norm != spec.norm else ""


# A whole file --------------------------------------------------------------------------------------------------------


def import_file(
    path: str,
    output: str,
    released_config: Callable[[ReleasedModel], Config],
    *,
    format: str = "",
    config: Config | None = None,
) -> str:
    """Writes the workdir ``output`` from a PyTorch file; returns what became of every tensor, for people.

    Args:
      path: ``.pth`` or ``.safetensors``.
      output: workdir to make.
      released_config: the config of a released model; asked where ``config`` is None and the file brings none.
      format: one of ``reading.FORMATS``; '': read off the file.
      config: of the stage that goes on from the file; None: the file's own, or the released one of its model.

    Raises:
      UserError: anything unexplained in the file, or an output that holds something; nothing is written then.
    """
    workdir = files.place(output, "--output").absolute()
    check_output(workdir)
    file, described = torch_files.read_file(path), reading.read_description(path)
    layout = "fada" if described or torch_tables.is_released(file) else "torchvision"
    if format and (format == "fada") != (layout == "fada"):
        raise UserError(f"{path} has the layout {layout!r}, not {format!r}")
    with reading.naming(path):
        reading.check_names(file, described)
        if config is not None:
            _check_config(config, file, described)
            chosen = config
        else:
            chosen = _own_config(described) if described else released_config(reading.released_model(file, path))
        states, iteration, account = import_states(file, chosen)
        spec, preprocessing = chosen.model, chosen.preprocessing
        own = described.preprocessing if described else reading.preprocessing_of(file, spec.backbone, path, format)
        if config is not None and preprocessing != own:
            raise UserError(f"{path} belongs to preprocessing {own}, the config has {preprocessing}")
        notes = [*account.notes, _norm_note(file, described, spec)]
        if described and torch_optimizers.read_iteration(file) is None:
            notes.append(f"its weights are of step {described.step} of another workdir; this one begins at step 0")
        class_set = described.class_set if described else None
        if not described and torch_tables.is_released(file):
            class_set = chosen.classes
    del file  # The states hold copies; both at once would be too much beside what writing takes.
    plain = chosen.plain() | {"preprocessing": dataclasses.asdict(own)}
    meta = saving.make_meta(plain, spec, own, class_set)
    _write(workdir, meta, iteration, states)
    predicts = class_set.name if class_set else "none (feature extractor only)"
    return "\n".join(
        [
            f"{path}: {layout}, {spec.backbone}, class set {predicts}",
            *_account_lines(dataclasses.replace(account, notes=tuple(filter(None, notes)))),
            f"written: {checkpoints.directory(workdir) / str(iteration)}",
        ]
    )


def check_output(workdir: Path) -> None:
    """Refuses a workdir that cannot be written or holds something, before the work that goes into it.

    Raises:
      UserError: naming what is there.
    """
    workdirs.check_folder(workdir)
    if checkpoints.available_steps(workdir):
        raise UserError(f"{workdir} holds checkpoints already: choose another --output")
    if not workdir.is_dir():
        return
    kept = [path for path in workdir.iterdir() if not path.name.startswith(".") and path.name != "lock"]
    others = sorted(path.name for path in kept if path != checkpoints.directory(workdir))
    if others:
        raise UserError(f"{workdir} holds {first(others)} already: choose an empty or a new folder as --output")


def _write(workdir: Path, meta: Meta, iteration: int, states: checkpoints.States) -> None:
    """Writes the one checkpoint of a workdir; an error leaves no part of it."""
    with workdirs.hold(workdir):
        check_output(workdir)  # Another import may have been quicker.
        try:
            with saving.writing(workdir, meta, wait=True) as save:
                save(iteration, states, None)
        except BaseException:
            saving.clear_unfinished(workdir)
            raise


def _account_lines(account: Account) -> Iterator[str]:
    for kind in ("used", "dropped", "initialised"):
        # Batch norm's counters say nothing about the weights; the names worth reading come first.
        names = sorted(getattr(account.tensors, kind), key=lambda name: name.endswith("num_batches_tracked"))
        shown = f": {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield f"  {len(names):>4} {kind}" + (shown if kind != "used" and names else "")
    yield from (f"  {note}" for note in account.notes)
    if account.left:
        yield f"  sections left in the file: {', '.join(account.left)}"


def _check_config(config: Config, file: Mapping[str, Any], described: Description | None) -> None:
    """Refuses a config of another model than the file's where no shape would tell, or one of a stage that is over.

    Raises:
      UserError: naming both values.
    """
    pairs: list[tuple[str, Any, Any]] = []
    if described:
        pairs.append(("preprocessing", described.preprocessing, config.preprocessing))
        if described.class_set:
            pairs.append(("classes", described.class_set.names, config.classes.names))
        pairs += interchange(described.spec, config.model)
    for name, in_file, in_config in pairs:
        if in_file != in_config:
            raise UserError(
                f"its {name} is {in_file!r}, the config's is {in_config!r}: correct the config or leave it out"
            )
    iteration = torch_optimizers.read_iteration(file)
    if iteration is not None and iteration > config.total_steps:
        raise UserError(
            f"its iteration {iteration} is beyond config.total_steps={config.total_steps}, so that stage has nothing "
            "to go on with: leave out --config, then evaluate the workdir or name it in config.init_from"
        )


def _own_config(described: Description) -> Config:
    """The config that a file brings along.

    Raises:
      UserError: it does not fit this version.
    """
    try:
        config = schema.stored(described.config, described.spec.num_classes)
        for field in dataclasses.fields(ModelSpec):
            of_model, of_config = (getattr(spec, field.name) for spec in (described.spec, config.model))
            if of_model != of_config and field.name not in ("dtype", "remat"):  # They change no array.
                raise UserError(f"its model.{field.name} is {of_config!r}, its model's {of_model!r}")
    except UserError as error:
        raise UserError(f"the config in it cannot be used ({error}): name one with --config") from error
    return config
