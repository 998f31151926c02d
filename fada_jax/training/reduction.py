"""Sums over the devices that share a batch, once at the end of a step.

Every device works through its own images until then. XLA by itself sums each kernel's gradient as soon as there is one,
once for each domain and micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fada_jax.models.convolution import BATCH_AXES, axes_by_hand, by_platform

T = TypeVar("T")
ReduceType = Literal["float32", "bfloat16"]


def over_devices(fn: Callable[..., T], states: Any, batch: Any) -> T:
    """``fn(states, batch)``, run by each device on its own images where the mesh splits the batch.

    Args:
      fn: returns what is the same on all devices: sums go through ``total``. It closes over no arrays.
      states: replicated; what the mesh splits is gathered first.
      batch: pytree of [N, ...]; where N cannot be split evenly, XLA splits the work itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names and mesh.shape[axis] > 1)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if parts == 1 or any(x.shape[0] % parts for x in jax.tree.leaves(batch)):
        return fn(states, batch)
    by_device = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axes)),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        check_vma=False,
    )
    return by_device(states, batch)


def total(tree: T, dtype: ReduceType = "float32") -> T:
    """Sums over the devices within ``over_devices``, and elsewhere ``tree`` itself.

    Args:
      tree: arrays of any shape; float32 and integers.
      dtype: that floating point sums are sent and added in. The 8 bits of bfloat16 lose small parts among hundreds.
    """
    axes = axes_by_hand()
    if not axes:
        return tree

    def rounded(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x.astype(dtype), axes).astype(x.dtype)

    def summed(x: jax.Array) -> jax.Array:
        if x.dtype == dtype or not jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.psum(x, axes)
        # CPUs add bfloat16 in float32, and XLA's compiler for them (jaxlib 0.10.2) aborts where it has to see to that.
        return by_platform(x, default=rounded, cpu=lambda x: jax.lax.psum(x.astype(dtype).astype(x.dtype), axes))

    return jax.tree.map(summed, tree)


def gathered(tree: T) -> T:
    """Arrays [n, ...] of all devices within ``over_devices``, one behind the other as in the batch: [N, ...]."""
    axes = axes_by_hand()
    if not axes:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), tree)
