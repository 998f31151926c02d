"""Where arrays live: a mesh over devices, batches split along its ``data`` axis, states replicated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fada_jax.errors import UserError


def make_mesh(num_devices: int = 0) -> Mesh:
    """A one-axis mesh ``data`` over ``num_devices`` devices of all processes; 0 takes every device.

    Raises:
      UserError: more devices asked for than there are.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise UserError(
            f"config.num_devices={num_devices}, but only {len(devices)} {devices[0].platform} device(s) exist"
        )
    return Mesh(np.array(devices[: num_devices or len(devices)]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of states and scalars: every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Sharding of batches: the leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(key: str, batch_size: int, mesh: Mesh, accumulate_steps: int = 1) -> None:
    """Refuses a batch that the mesh cannot split evenly, in each of its micro-batches.

    Raises:
      UserError: naming ``key``.
    """
    if batch_size < 1 or batch_size % (mesh.size * accumulate_steps):
        micro = f" times config.accumulate_steps={accumulate_steps}" if accumulate_steps > 1 else ""
        raise UserError(
            f"{key}={batch_size} must be a positive multiple of the {mesh.size} device(s) of the mesh{micro}"
        )


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays split over the mesh; what is no number is left out."""
    sharding = by_batch(mesh)
    arrays = {key: np.asarray(value) for key, value in batch.items()}
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in arrays.items()
        if value.dtype.kind in "biuf"
    }
