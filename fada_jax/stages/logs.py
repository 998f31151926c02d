"""What a run writes down while it trains: terminal, metrics.jsonl, TensorBoard, and Weights & Biases where asked.

``tensorboard --logdir W`` shows scalars, the config as hyperparameters, and predictions on the same target images at
every checkpoint. ``config.wandb`` sends the same to Weights & Biases (extra ``wandb``; WANDB_MODE=offline keeps it in
the workdir).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from fada_jax import documents
from fada_jax.config import flat
from fada_jax.errors import UserError
from fada_jax.storage import caches, lines
from fada_jax.stored import LogLine
from fada_jax.training import goodput, loop

# Seconds between two times that events of TensorBoard go to a bucket.
_SENT_EVERY = 60.0


@dataclasses.dataclass(frozen=True)
class RunLog:
    """Where a loop reports to.

    Attributes:
      metrics: called with the step and its metrics; what ``loop.fit`` takes as ``on_log``.
      picture: called with the step, a uint8 [H, W, 3] picture, and its name unless it is of predictions.
    """

    metrics: Callable[[int, dict[str, float]], None]
    picture: Callable[..., None]


def memory() -> dict[str, float]:
    """Peak memory so far in GiB: ``host_memory`` of this process, ``device_memory`` where the backend tells it."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere.
    result = {"host_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        result["device_memory"] = statistics["peak_bytes_in_use"] / 2**30
    return result


@contextlib.contextmanager
def open_log(
    workdir: Path,
    plan: loop.Plan,
    config: Mapping[str, Any],
    log: Callable[[str], None],
    *,
    images_per_step: int,
    account: goodput.Account | None = None,
) -> Iterator[RunLog]:
    """Opens the logs of a stage; what they hold beyond the step that the run goes on from is dropped.

    Args:
      workdir: receives ``metrics.jsonl`` and TensorBoard events.
      plan: of the loop.
      config: the stage's, as a plain dict.
      log: receives the progress lines.
      images_per_step: of all streams, which images_per_second is made of.
      account: of where time goes; it learns what earlier starts spent.
    """
    if jax.process_index():
        yield RunLog(lambda step, values: None, lambda step, picture, name: None)
        return
    path = workdir / "metrics.jsonl"
    kept = lines.read(path)
    lines.replace(path, [line for line in kept if _step_of(line) <= plan.start])
    account, began = account or goodput.Account(), time.perf_counter()
    account.resume(kept, plan.start)
    with contextlib.ExitStack() as stack:
        own, send = _mirrored(workdir)
        stack.callback(send, 0.0)
        board = stack.enter_context(SummaryWriter(str(own), purge_step=plan.start + 1))
        _write_hyperparameters(board, config)
        file = stack.enter_context(lines.appending(path))
        online = _open_wandb(stack, own, config) if config["wandb"] else None

        def metrics(step: int, values: dict[str, float]) -> None:
            values = {**values, "images_per_second": values["steps_per_second"] * images_per_step, **memory()}
            spent = account.plain()
            values["goodput"] = goodput.share(spent["seconds"])
            file.add(json.dumps({"step": step, **values, "time": spent}) + "\n")
            for key, value in values.items():
                board.add_scalar(key, value, step)
            if online:
                online.log(values, step=step)
            send(_SENT_EVERY)
            remaining = (time.perf_counter() - began) / (step - plan.start) * (plan.total - step)
            shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items() if key.startswith("loss"))
            rate = f"{values['steps_per_second']:.2f} steps/s"
            log(f"{config['stage']} {step:>6}/{plan.total}  {shown}  {rate}  {remaining / 60:.1f} min left")

        def picture(step: int, picture: np.ndarray, name: str = "predictions/target_images") -> None:
            board.add_image(name, picture, step, dataformats="HWC")
            if online:
                import wandb

                online.log({name: wandb.Image(picture)}, step=step)
            board.flush()
            send(0.0)

        yield RunLog(metrics, picture)


def _mirrored(workdir: Path) -> tuple[Path, Callable[[float], None]]:
    """Where libraries write that append to files, and what sends that to a bucket if it last did some seconds ago."""
    own, sync = caches.mirrored(workdir)
    last = [time.monotonic()]

    def send(seconds: float) -> None:
        if time.monotonic() - last[0] >= seconds:
            sync()
            last[0] = time.monotonic()

    return own, send


def _step_of(line: str) -> float:
    """Step of a line of metrics.jsonl; infinity where a kill or a full disk cut it short, or it is none."""
    try:
        return documents.check(documents.parse(line, "line"), LogLine, "line").step if line.endswith("\n") else math.inf
    except UserError:
        return math.inf


def _write_hyperparameters(board: Any, config: Mapping[str, Any]) -> None:
    values = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in flat(config).items()}
    # SummaryWriter.add_hparams would open another run; these belong to this one.
    for summary in hparams(values, {"loss_seg": 0.0}):
        board.file_writer.add_summary(summary)


def check_wandb(project: str) -> None:
    """Refuses a project of Weights & Biases that nothing could be sent to.

    Raises:
      UserError: it is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"config.wandb={project!r} needs wandb: pip install 'fada-jax[wandb]'")


def _open_wandb(stack: contextlib.ExitStack, workdir: Path, config: Mapping[str, Any]) -> Any:
    import wandb

    # One run a workdir: a resumed stage goes on in the curves it began.
    identity = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    run = wandb.init(
        project=config["wandb"], dir=str(workdir), id=identity, name=workdir.name, config=dict(config), resume="allow"
    )
    stack.callback(run.finish)
    return run
