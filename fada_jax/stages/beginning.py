"""What a stage is refused for before it begins or goes on, and what makes its workdir its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fada_jax import __version__, distributed, documents, files, stored
from fada_jax.config import Config
from fada_jax.errors import UserError
from fada_jax.stages import data, labelling, logs, parents, program, statistics, workdirs
from fada_jax.stored import Manifest, Meta, Parent
from fada_jax.training import checkpoints, checksums

MANIFEST = "manifest.json"
# What a stage writes into its workdir under a name of its own, without its checkpoints.
_WRITTEN = ("config.json", "metrics.jsonl", "non_finite.jsonl", "pseudo_labels.tfrecord")


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a workdir holds already.

    Attributes:
      meta: of its last checkpoint; None without one.
      manifest: which says whose it is; None where nothing has begun, or an earlier version has.
      images: of each stream of the batch.
    """

    meta: Meta | None
    manifest: Manifest | None
    images: Mapping[str, int]

    @property
    def parents(self) -> Mapping[str, Parent]:
        """The models that the stage began with, by config key."""
        begun = self.meta or self.manifest
        return begun.parents if begun else {}


def check(config: Config, workdir: Path, *, data_sets: bool = True) -> Begun:
    """Refuses what can be refused about a stage while nothing is written.

    Args:
      config: of the stage.
      workdir: of the stage, absolute.
      data_sets: look at the config's data sets, too.

    Raises:
      UserError: a network that cannot be built, a workdir of another config or of somebody else, missing data or other
        data than it began with.
    """
    workdirs.check_folder(workdir)
    mesh = distributed.make_mesh(config.num_devices, config.mesh.fsdp, config.mesh.spatial)
    program.state_shapes(config)
    if config.wandb:
        logs.check_wandb(config.wandb)
    meta, manifest = _last_meta(workdir), read_manifest(workdir)
    if meta:
        # A class map may have moved; what counts is the classes in it. ImageNet weights have none of their own.
        names = {"class_set": list((meta.class_set or config.classes).names)}
        _refuse_other(config, meta.config | names, meta.parents, workdir)
    elif manifest:
        _refuse_other(config, manifest.config, manifest.parents, workdir)
    else:
        _refuse_foreign(workdir)
    if not (data_sets or meta):
        statistics.refuse_batches(config)
    images = data.check_streams(config, labelling.pseudo_label_file(config, workdir), mesh) if data_sets else {}
    known = (meta.images if meta else {}) or images
    if known != images:
        raise UserError(
            f"{workdir} was trained on {known} images, config.data_dir={config.data_dir} holds {images}: give it the "
            "data it began with or use another --workdir"
        )
    return Begun(meta, manifest, images)


def changed(begun: Begun, workdir: Path) -> bool:
    """Whether a workdir holds something else than when ``check`` looked."""
    return (_last_meta(workdir), read_manifest(workdir)) != (begun.meta, begun.manifest)


def _last_meta(workdir: Path) -> Meta | None:
    """What the last checkpoint says whose description is as it was written."""
    for number in reversed(checkpoints.available_steps(workdir)):
        if not checksums.damage(checkpoints.directory(workdir) / str(number), ("meta",)):
            return checkpoints.read_meta(workdir, number)
    return None


def read_manifest(workdir: Path) -> Manifest | None:
    """The manifest of a workdir; None without one.

    Raises:
      UserError: it cannot be read.
    """
    path = workdir / MANIFEST
    return stored.manifest(documents.read(path), path) if path.exists() else None


def _refuse_other(config: Config, before: Mapping[str, Any], begun_with: Mapping[str, Parent], workdir: Path) -> None:
    """Refuses another config than ``before``, or other parents than the stage began with."""
    class_set: Any = config.class_set
    if isinstance(before["class_set"], list):
        class_set = list(config.classes.names)
    now = {"class_set": class_set, **parents.same_parents(config, before, begun_with, workdir)}
    workdirs.refuse_other_config(before, config.plain() | now, workdir)


def _refuse_foreign(workdir: Path) -> None:
    """Refuses a workdir whose files would be overwritten although no stage of ours made them."""
    # Earlier versions wrote their config first.
    if checkpoints.available_steps(workdir) or _is_config(workdir / "config.json"):
        return
    for path in (workdir / name for name in _WRITTEN):
        if path.exists():
            raise UserError(f"{path} is there already and no stage made it: use another --workdir, or move it away")


def _is_config(path: Path) -> bool:
    try:
        values = documents.read(path)
    except UserError:
        return False
    return isinstance(values, dict) and {"stage", "total_steps", "model"} <= values.keys()


def own(config: Config, workdir: Path, begun: Begun, models: Mapping[str, checkpoints.Model]) -> dict[str, Parent]:
    """Makes a workdir the stage's, before anything else is written into it; returns the models it is made from.

    Args:
      config: of the stage.
      workdir: of the stage, held by this run.
      begun: of ``check``.
      models: loaded parents of a stage that begins, by config key.
    """
    made_from = dict(begun.parents) or {key: Parent(model.step, model.digest) for key, model in models.items()}
    if jax.process_index() == 0:
        manifest = Manifest(1, f"fada-jax {__version__}", config.plain(), made_from)
        files.write_text(workdir / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
        files.write_text(workdir / "config.json", json.dumps(config.plain(), indent=2) + "\n")
    return made_from
