"""Commands as a user runs them, their folder, and the facts that they note; several run side by side."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fada_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MARKER = "rehearsal.json"
_BEGAN = time.perf_counter()


def log(text: str) -> None:
    """A progress line with the seconds since the start."""
    print(f"{time.perf_counter() - _BEGAN:5.0f} s  {text}", flush=True)


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Where everything lies."""

    out: Path

    def command(self, name: str, *arguments: Any) -> list[dict[str, Any]]:
        """Runs ``python *arguments`` as a user does; returns its facts.

        Args:
          name: of its log and of its facts, unique.

        Raises:
          UserError: it failed.
        """
        path, facts = self.out / "logs" / f"{name}.txt", self.out / "facts" / f"{name}.jsonl"
        for file in (path, facts):
            file.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with path.open("wb") as output:
            status = subprocess.call(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=self._environment(facts),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if status:
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise UserError(f"{name} ended with status {status}: {lines[-1]} (all of it: {path})")
        log(f"{name} ({time.perf_counter() - began:.0f} s)")
        noted = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
        return [json.loads(line) for line in dict.fromkeys(noted)]

    def _environment(self, facts: Path) -> dict[str, str]:
        return {
            **os.environ,
            "FADA_JAX_HANDOVERS": str(facts),
            "JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }

    @property
    def data(self) -> Path:
        return self.out / "data"

    def raw(self, dataset: str) -> Path:
        return self.out / "raw" / dataset

    def weights(self, backbone: str) -> Path:
        return self.out / "weights" / backbone


def prepare(out: Path) -> None:
    """An empty folder with the mark of this script; of an earlier rehearsal only what was compiled stays.

    Raises:
      UserError: the folder holds other files.
    """
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: not made by this script; name another folder")
    for path in out.iterdir() if out.is_dir() else ():
        if path.is_dir() and path.name != "compiled":
            shutil.rmtree(path)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("{}\n", encoding="utf-8")


def side_by_side(jobs: int, tasks: list[Callable[[], Any]]) -> list[Any]:
    """Results of ``tasks``, ``jobs`` at a time, each with its share of the cores where the system can say so.

    Raises:
      UserError: the first that failed; those that run then are waited for, those that wait are left out.
    """
    cores: queue.SimpleQueue = queue.SimpleQueue()
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        jobs = min(jobs, len(mine))
        for lane in range(jobs):
            cores.put(mine[lane::jobs])

    def settle() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(threading.get_native_id(), cores.get())  # Commands inherit it.

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=settle) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]
