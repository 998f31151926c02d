"""Folders of stages and recipes: which stage a folder means, whose it is, and that one run at a time is in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fada_jax import documents, files, stored
from fada_jax.config import FREE_ON_RESUME, flat
from fada_jax.errors import Busy, UserError
from fada_jax.methods.stages import RENAMED, STAGES, current_name
from fada_jax.models import compute_dtype
from fada_jax.storage import leases
from fada_jax.training import checkpoints

# In a recipe's workdir.
RECIPE = "recipe.json"


def stage_folder(workdir: str | Path, name: str) -> Path:
    """The folder of a stage in a recipe's workdir; one of an earlier version keeps its old name."""
    folder = files.place(workdir) / name
    for old, new in RENAMED.items():
        if new == name and not folder.exists() and (folder.parent / old).exists():
            return folder.parent / old
    return folder


def stage_workdir(workdir: str | Path) -> Path:
    """``workdir`` itself when it holds checkpoints, otherwise its last finished stage, or the last begun if none is.

    Raises:
      UserError: neither.
    """
    if checkpoints.available_steps(workdir):
        return files.place(workdir)
    folders = [stage_folder(workdir, name) for name in reversed(stages_of(workdir))]
    begun = [folder for folder in folders if segments(folder)]
    for folder in (*filter(_finished, begun), *begun):
        return folder
    raise UserError(f"no checkpoint in {checkpoints.directory(workdir)} or in a stage folder of {workdir}")


def write_stages(workdir: Path, names: Sequence[str]) -> None:
    """Writes down the stages of a recipe's workdir, in their order."""
    files.write_text(workdir / RECIPE, json.dumps({"stages": list(names)}, indent=2) + "\n")


def stages_of(workdir: str | Path) -> list[str]:
    """Folders of the stages of a recipe's workdir, in their order; those of FADA's where it does not say.

    Raises:
      UserError: its list cannot be read.
    """
    path = files.place(workdir) / RECIPE
    if not path.exists():
        return list(STAGES)
    values = documents.read(path)
    documents.check(values, stored.Recipe, path, advice="delete it, scripts/run_recipe.py writes it anew")
    return list(values["stages"])


def segments(folder: Path) -> bool:
    """Whether a folder holds checkpoints of a segmenter; translators of images are none."""
    steps = checkpoints.available_steps(folder)
    return bool(steps) and checkpoints.read_meta(folder, steps[-1]).translator is None


def _finished(folder: Path) -> bool:
    step = checkpoints.available_steps(folder)[-1]
    return step >= int(checkpoints.read_meta(folder, step).config["total_steps"])


def check_folder(workdir: Path) -> None:
    """Refuses a workdir that cannot be one.

    Raises:
      UserError: a file, or a place where nothing can be written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: the workdir must be a folder")
    if workdir.is_dir() and not files.is_object(workdir):
        if not os.access(workdir, os.W_OK | os.X_OK):
            raise UserError(f"{workdir} cannot be written: no permission, or a read-only file system")
    else:
        files.check_output(workdir / "lock", ours=files.anything)


@contextlib.contextmanager
def hold(workdir: str | Path) -> Iterator[None]:
    """Makes ``workdir`` and keeps other runs out of it while open.

    Process 0 holds a lock on ``workdir/lock`` for all processes of a run. The kernel lets go of it when that process
    ends in whatever way, so a lock is never stale. In a bucket it is a lease (``storage.leases``).

    Raises:
      Busy: another run is at work there.
      UserError: the folder cannot be written.
    """
    workdir = files.place(workdir).absolute()
    busy, reason = "another run is at work in it: wait for it or use another --workdir", ""
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                if files.is_object(workdir):
                    stack.enter_context(leases.held(workdir / "lock", busy))
                else:
                    workdir.mkdir(parents=True, exist_ok=True)
                    # Opened to append: a user's file of that name keeps what it holds.
                    file = stack.enter_context((workdir / "lock").open("ab"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except UserError as error:
                reason = str(error)
            except BlockingIOError:
                reason = busy
            except OSError as error:
                reason = f"it cannot be written ({error.strerror})"
        # All processes leave together, instead of waiting for one that has left.
        if multihost_utils.broadcast_one_to_all(np.bool_(bool(reason))):
            kind = Busy if reason.startswith(busy) else UserError
            raise kind(f"{workdir}: {reason or 'process 0 was refused'}")
        yield


def refuse_other_config(old: Mapping[str, Any], new: Mapping[str, Any], workdir: str | Path) -> None:
    """Refuses to go on in a workdir that belongs to another config.

    Args:
      old, new: as ``Config.plain`` gives them.
      workdir: of both.

    Raises:
      UserError: naming every key that matters, with both values.
    """
    before, now = flat(old), flat(new)
    for values in (before, now):
        # 'auto' and what it means here are the same, and so are both names of a stage.
        values["model.dtype"] = compute_dtype(values.get("model.dtype", "auto"))
        for key in ("stage", "student_from"):
            values[key] = current_name(values.get(key, ""))
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        # A key that an earlier version did not have is no contradiction. A name may be free in every group.
        for key in sorted(before)
        if before.get(key) != now.get(key)
        and {key.partition(".")[0], key.rpartition(".")[2]}.isdisjoint(FREE_ON_RESUME)
    ]
    if changed:
        raise UserError(f"{workdir} belongs to another config ({'; '.join(changed)}): use another --workdir")
