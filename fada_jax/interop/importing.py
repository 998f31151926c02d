"""A weight file becomes the workdir of a stage, and every tensor of it and every array of ours is accounted for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fada_jax import config as schema
from fada_jax import files
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.interop import accounts, lineage, reading, torch_files, torch_optimizers, torch_tables
from fada_jax.interop.entries import CLASSIFIER, DISCRIMINATOR, FEATURE_EXTRACTOR, Report
from fada_jax.interop.lineage import DiscriminatorFiles
from fada_jax.interop.reading import Description, ReleasedModel
from fada_jax.interop.tensors import first
from fada_jax.models import ModelSpec, interchange
from fada_jax.stages import workdirs
from fada_jax.stages.program import create_states
from fada_jax.stored import Meta
from fada_jax.training import checkpoints, saving
from fada_jax.training.states import TrainState, replace_weights

_FLAGS = {DISCRIMINATOR: "--discriminator", lineage.AUXILIARY: "--auxiliary_discriminator"}


# A stage's states ----------------------------------------------------------------------------------------------------


def import_states(
    file: Mapping[str, Any], config: Config, discriminators: Mapping[str, Any] | None = None
) -> tuple[checkpoints.States, int, accounts.Account]:
    """TrainStates of a config's stage from a file, with every array of them accounted for.

    Weights, moments and step are those of the file. What it lacks is what ``create_states`` makes of the config:
    parameters from its seed, zero moments. Every schedule stands at the file's iteration.

    Args:
      file: contents of a file.
      config: of the stage.
      discriminators: contents of further files with a discriminator each, by the section that they stand for.

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
    others = {name: lineage.DISCRIMINATORS.get(name, "") for name in shapes if name != "generator"}
    given = _discriminators(file, discriminators or {}, others.values())
    left = _left_in_file(file, DISCRIMINATOR in others.values())
    notes = [accounts.step_note(named, config.total_steps)]
    lacking = [] if reading.has_classifier(file) else ["head"]
    lacking += [name for name, section in others.items() if section not in given]
    # Not before the rest of the file is known to be good: it takes a while.
    fresh = functools.cache(functools.partial(_fresh, create, tuple(lacking)))

    generator = _without_weights(shapes["generator"], iteration)
    initial = fresh()["head"] if "head" in lacking else None
    params, batch_stats, report = reading.import_generator(file, spec, initial)
    opt_state = torch_optimizers.import_generator_optimizer(generator.opt_state, file, spec, iteration)
    states = {"generator": replace_weights(generator, params, batch_stats).replace(opt_state=opt_state)}
    if "head" in lacking:
        new = "classifier, fc6 and fc7" if spec.backbone == "vgg16" else "classifier"
        dropped = "" if not lineage.is_initial(file) else ", where layer5 is of other classes and dropped"
        notes.append(f"{new}: not in the file{dropped}, freshly initialised")

    for name, section in others.items():
        state = _without_weights(shapes[name], iteration)
        if name in lacking:
            states[name] = state.replace(params=fresh()[name])
            report += Report(initialised=_names(section or name, state.params))
            notes.append(accounts.discriminator_note(name, iteration))
        else:
            own = section == DISCRIMINATOR and DISCRIMINATOR in file
            states[name], used = _discriminator(given[section], section, state, file if own else {}, iteration)
            report += used

    _check_complete(states, shapes)
    notes += accounts.optimizer_notes(file, left, states, iteration)
    return states, iteration, accounts.Account(report, tuple(notes), left)


def _fresh(create: Callable[[], checkpoints.States], parts: Collection[str]) -> dict[str, Any]:
    """Freshly initialised parameters, on the host, of these parts alone: a large model need not exist twice.

    Args:
      create: all states of the stage; traceable.
      parts: 'head' for what no ImageNet model holds (the classifiers, and VGG's fc6 and fc7), and names of states.
    """

    def parameters() -> dict[str, Any]:
        states = create()
        params = states["generator"].params
        extractor = {name: value for name, value in params[FEATURE_EXTRACTOR].items() if name in ("fc6", "fc7")}
        head = {"params": {**params, FEATURE_EXTRACTOR: extractor}}
        return {name: head if name == "head" else states[name].params for name in parts}

    # XLA drops what is not asked for. As in stages.program: what runs once is compiled in a hurry on CPUs.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.device_get(jax.jit(parameters, compiler_options=options)())


def _discriminators(
    file: Mapping[str, Any], further: Mapping[str, Any], wanted: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    """State dicts of discriminators by section, those in ``file`` and those in ``further`` files.

    Raises:
      UserError: the stage has none that a further file could be, or ``file`` holds one itself.
    """
    for section in further:
        if section not in wanted:
            raise UserError(
                f"{_FLAGS[section]}: this stage has no such discriminator: leave it out or name its --config"
            )
        if section in file:
            raise UserError(f"{_FLAGS[section]}: the file holds a discriminator itself: leave it out")
    own = {DISCRIMINATOR: file[DISCRIMINATOR]} if DISCRIMINATOR in file else {}
    return {**own, **{section: contents.get("state_dict", contents) for section, contents in further.items()}}


def _names(section: str, params: Any) -> tuple[str, ...]:
    """Names of tensors that a file would hold for a network beside G."""
    if section in lineage.DISCRIMINATORS.values():
        return tuple(f"{section}.{entry.key}" for entry in torch_tables.discriminator_table_of(params))
    return tuple(f"{section}{jax.tree_util.keystr(path)}" for path, _ in jax.tree.leaves_with_path(params))


def _discriminator(
    tensors: Any, section: str, state: TrainState, file: Mapping[str, Any], iteration: int
) -> tuple[TrainState, Report]:
    """State of a discriminator and what became of its tensors.

    Args:
      tensors: its state dict.
      section: that it stands for.
      state: its shapes and first optimizer state.
      file: that may hold its optimizer.
      iteration: of its schedule.
    """
    params, report = torch_tables.import_discriminator_like(tensors, state.params, section)
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


# A whole file --------------------------------------------------------------------------------------------------------


def import_file(
    path: str,
    output: str,
    released_config: Callable[[ReleasedModel], Config],
    *,
    format: str = "",
    config: Config | None = None,
    discriminators: DiscriminatorFiles = lineage.NONE,
) -> str:
    """Writes the workdir ``output`` from a PyTorch file; returns what became of every tensor, for people.

    Args:
      path: ``.pth`` or ``.safetensors``.
      output: workdir to make.
      released_config: the config of a released model; asked where ``config`` is None and the file brings none.
      format: one of ``reading.FORMATS``; '': read off the file.
      config: of the stage that goes on from the file; None: the file's own, or the released one of its model.
      discriminators: further files with a discriminator each.

    Raises:
      UserError: anything unexplained in the file, or an output that holds something; nothing is written then.
    """
    workdir = files.place(output, "--output").absolute()
    check_output(workdir)
    file, described = torch_files.read_file(path), reading.read_description(path)
    layout = "fada" if described else reading.layout_of(file)
    if format and layout != reading.LAYOUTS[format]:
        raise UserError(f"{path} has the layout {layout!r}, not {format!r}")
    with reading.naming(path):
        reading.check_names(file, described)
        if config is not None:
            _check_config(config, file, described, format)
            chosen = config
        elif described:
            chosen = _own_config(described)
        else:
            chosen = released_config(reading.released_model(file, path, format))
        further = {section: torch_files.read_file(name) for section, name in discriminators.by_section.items()}
        states, iteration, account = import_states(file, chosen, further)
        spec = chosen.model
        own = described.preprocessing if described else reading.preprocessing_of(file, spec.backbone, path, format)
        if config is not None and config.preprocessing != own:
            raise UserError(f"{path} belongs to preprocessing {own}, the config has {config.preprocessing}")
        notes = [*account.notes, accounts.norm_note(file, described, spec)]
        if described and torch_optimizers.read_iteration(file) is None:
            notes.append(f"its weights are of step {described.step} of another workdir; this one begins at step 0")
        trained = chosen.classes if torch_tables.has_classifier(file) else None
        class_set = described.class_set if described else trained
    del file  # The states hold copies; both at once would be too much beside what writing takes.
    plain = chosen.plain() | {"preprocessing": dataclasses.asdict(own)}
    meta = saving.make_meta(plain, spec, own, class_set)
    _write(workdir, meta, iteration, states)
    predicts = class_set.name if class_set else "none (feature extractor only)"
    return "\n".join(
        [
            f"{path}: {layout}, {spec.backbone}, class set {predicts}",
            *accounts.account_lines(dataclasses.replace(account, notes=tuple(filter(None, notes)))),
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


def _check_config(config: Config, file: Mapping[str, Any], described: Description | None, format: str) -> None:
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
    else:
        pairs += reading.told(file, config.model, format)
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
