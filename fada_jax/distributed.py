"""Processes and devices: how a run joins and ends together, and where its arrays live.

A mesh has the axes ``data``, ``fsdp`` and ``spatial``. Batches are split over ``data`` and ``fsdp``, image rows over
``spatial``; large parameters and their optimizer state are split over ``fsdp``, everything else is replicated. The
compiler inserts the communication, so every mesh that is not refused computes what one device does, to rounding.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fada_jax import endings, peers
from fada_jax.errors import UserError
from fada_jax.models.convolution import BATCH_AXES

# Smaller arrays are replicated: gathering them costs more than they weigh.
MIN_SHARDED_SIZE = 2**14


def make_mesh(
    num_devices: int = 0, fsdp: int = 1, spatial: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over ``num_devices`` devices of all processes; 0 takes every device.

    Args:
      num_devices: devices in all.
      fsdp: of these, how many share each parameter.
      spatial: how many share the rows of an image. The rest multiplies to ``data``.
      devices: what to take them from instead, for instance devices to compile for that are not here.

    Raises:
      UserError: more devices asked for than there are, axes that do not divide them, or devices that the processes
        cannot share.
    """
    all_here = devices is None
    devices = jax.devices() if devices is None else devices
    count = num_devices or len(devices)
    if count > len(devices):
        raise UserError(
            f"config.num_devices={num_devices}, but only {len(devices)} {devices[0].platform} device(s) exist"
        )
    if fsdp < 1 or spatial < 1 or count % (fsdp * spatial):
        raise UserError(f"config.mesh: fsdp={fsdp} times spatial={spatial} must divide the {count} device(s)")
    chosen = _shared_by_processes(devices, count, spatial) if all_here and jax.process_count() > 1 else devices[:count]
    return Mesh(np.array(chosen).reshape(-1, fsdp, spatial), (*BATCH_AXES, "spatial"))


def _shared_by_processes(devices: Sequence[jax.Device], count: int, spatial: int) -> list[jax.Device]:
    """``count`` devices, the same number of each process.

    Raises:
      UserError: they cannot be shared, or some processes would share rows of an image and others not.
    """
    processes = jax.process_count()
    share = count // processes
    by_process = [[d for d in devices if d.process_index == i][:share] for i in range(processes)]
    if count % processes or any(len(group) < share for group in by_process):
        raise UserError(f"config.num_devices={count} must take as many devices of each of the {processes} processes")
    if share % spatial and spatial % share:
        raise UserError(
            f"config.mesh.spatial={spatial} must divide the {share} device(s) of each process, or be a multiple of them"
        )
    return [device for group in by_process for device in group]


def on_mesh(mesh: Mesh, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, traced and run where layers know the mesh: they then sum gradients over it in float32."""

    @functools.wraps(fn)
    def run(*arguments: Any) -> Any:
        with jax.set_mesh(mesh):
            return fn(*arguments)

    return run


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of scalars: every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_size(mesh: Mesh, tree: Any) -> Any:
    """Sharding of every array of a state: large ones are split over ``fsdp`` along their longest divisible axis."""
    parts = mesh.shape["fsdp"]

    def place(x: Any) -> NamedSharding:
        axes = [i for i, n in enumerate(x.shape) if n % parts == 0]
        if parts == 1 or not axes or math.prod(x.shape) < MIN_SHARDED_SIZE:
            return replicated(mesh)
        axis = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(place, tree)


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes of the arrays of ``tree``, each with its sharding: what a program is compiled or a state restored for."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def placed_batch(mesh: Mesh, tree: Any) -> Any:
    """``placed`` for the arrays of a batch."""
    return placed(tree, jax.tree.map(lambda x: by_batch(mesh, x.ndim), tree))


def by_batch(mesh: Mesh, ndim: int = 3) -> NamedSharding:
    """Sharding of one array of a batch: images [N, H, W, ...], or with ``ndim`` 1 values per image [N]."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *(["spatial"] if ndim > 2 else [])))


def batch_parts(mesh: Mesh) -> int:
    """Devices that a batch is split over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(key: str, batch_size: int, mesh: Mesh, accumulate_steps: int = 1) -> None:
    """Refuses a batch that the mesh cannot split evenly, in each of its micro-batches.

    Raises:
      UserError: naming ``key``.
    """
    if batch_size < 1 or batch_size % (batch_parts(mesh) * accumulate_steps):
        micro = f" times config.accumulate_steps={accumulate_steps}" if accumulate_steps > 1 else ""
        raise UserError(
            f"{key}={batch_size} must be a positive multiple of the {batch_parts(mesh)} device(s) that share it{micro}"
        )


def check_height(key: str, height: int, mesh: Mesh) -> None:
    """Refuses images whose rows the mesh cannot split evenly.

    Raises:
      UserError: naming ``key``.
    """
    if height % mesh.shape["spatial"]:
        raise UserError(f"{key}: {height} rows cannot be split over config.mesh.spatial={mesh.shape['spatial']}")


def readers(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch this process reads, and how many there are.

    Every process reads whole images; those that share the rows of an image read the same.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    sharing = max(1, mesh.shape["spatial"] * processes // mesh.size)
    return jax.process_index() // sharing, processes // sharing


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays split over the mesh; what is no number is left out.

    The shares of all ``readers``, as many whole images in each, are the global batch. Each device gets its part of it
    by its place in the global array. Rows that cannot be split evenly, of labels at their own size, are replicated.
    """
    arrays = {key: np.asarray(value) for key, value in batch.items()}
    reader, count = readers(mesh)

    def put(value: np.ndarray) -> jax.Array:
        share = value.shape[0]
        sharding = by_batch(mesh, value.ndim if value.ndim > 2 and value.shape[1] % mesh.shape["spatial"] == 0 else 1)

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(share * count)
            return value[(slice(first - reader * share, last - reader * share), *index[1:])]

        return jax.make_array_from_callback((share * count, *value.shape[1:]), sharding, part)

    return {key: put(value) for key, value in arrays.items() if value.dtype.kind in "biuf"}


def share(count: int) -> slice:
    """This process's share of so many things: neighbours, of which all processes have as many, but for one."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(index * count // processes, (index + 1) * count // processes)


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order, in every process."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    texts = multihost_utils.process_allgather(np.pad(data, (0, int(lengths.max()) - len(data))))
    return [bytes(x[:n]).decode() for x, n in zip(np.reshape(texts, (len(lengths), -1)), lengths, strict=True)]


def join(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    *,
    deterministic: bool = False,
    timeout: int = 300,
    debug: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Joins the other processes of the run, before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0; empty: of the cluster, which JAX detects.
      num_processes, process_id: with a coordinator.
      deterministic: the same run gives the same bits on GPUs, too.
      timeout: seconds to wait for the others.
      debug: see ``peers.watch``.
      log: receives what is waited for.

    Raises:
      UserError: no HOST:PORT, or the others cannot be reached.
    """
    if coordinator:
        _check_address(coordinator)
    if deterministic:
        # XLA reads the flag when the first device is touched. It excludes nondeterministic kernels and autotuning,
        # which may choose other kernels at every start.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    if num_processes == 1 and not coordinator:
        return
    where = f"at {coordinator}" if coordinator else "of the cluster"
    log(f"waiting for the other processes {where}, {timeout} seconds at most")
    given_up = (
        f"error: the other processes {where} were not met within {timeout} seconds: start all of them together, "
        "with the address of process 0, which each must reach"
    )
    late = timeout + 60  # JAX aborts with a stack trace when its own time is up.
    limits: dict[str, Any] = {
        "initialization_timeout": late,
        "heartbeat_timeout_seconds": peers.HEARTBEAT,
        "shutdown_timeout_seconds": peers.FINISHING,
    }
    try:
        with endings.limited(timeout, given_up):
            if coordinator:
                jax.distributed.initialize(coordinator, num_processes, process_id, **limits)
            else:
                jax.distributed.initialize(**limits)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error
    peers.watch(debug=debug)
    # An early meeting: on CPUs the first one fails when a process is 30 seconds late.
    multihost_utils.sync_global_devices("joined")


def _check_address(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise UserError(f"--coordinator={text}: must be HOST:PORT of process 0, with a port from 1 to 65535")


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """While open, SIGTERM, SIGINT and SIGHUP only set a flag, so that the loop can save before it leaves.

    Several processes leave after the same step: JAX passes a SIGTERM that one of them gets to all.

    Yields:
      whether the loop shall stop after a step.
    """
    together, seen = jax.process_count() > 1, []

    def note(number: int, _: Any) -> None:
        seen.append(number)
        if together:
            signal.raise_signal(signal.SIGTERM)

    # In several processes SIGTERM is JAX's own, and the others are passed on as one.
    numbers = [number for number in endings.SIGNALS if not (together and number == signal.SIGTERM)]
    # What the caller ignores, as nohup does SIGHUP, stays ignored.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        previous = {number: signal.signal(number, note) for number in handled}
    except ValueError:  # Not the main thread, in a notebook for instance: signals stay as they are.
        previous = {}

    try:
        with endings.saving():
            yield lambda step: multihost_utils.reached_preemption_sync_point(step) if together else bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
