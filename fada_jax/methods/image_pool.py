"""The pool of translated images that a discriminator is shown some of, as CycleGAN's release has it.

Shrivastava et al., "Learning from Simulated and Unsupervised Images through Adversarial Training" (CVPR 2017), section
2.3: what a generator made some steps ago keeps its discriminator from forgetting. The pool is an array on the device,
and belongs to the states.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# ``images`` float32 [P, H, W, 3] of which the first ``count``, int32, are there.
Pool = dict[str, jax.Array]


class Draws(NamedTuple):
    """What is drawn for N images: ``exchange`` bool [N] and ``place`` int32 [N] in a full pool."""

    exchange: jax.Array
    place: jax.Array


def empty(size: int, height: int, width: int) -> Pool:
    """A pool for so many images, at least 1."""
    return {"images": jnp.zeros((size, height, width, 3), jnp.float32), "count": jnp.zeros((), jnp.int32)}


def draw(rng: jax.Array, count: int, size: int) -> Draws:
    """Draws for ``count`` images and a pool of ``size``."""
    chance, place = jax.random.split(rng)
    return Draws(jax.random.bernoulli(chance, 0.5, (count,)), jax.random.randint(place, (count,), 0, size))


def query(pool: Pool, images: jax.Array, draws: Draws) -> tuple[Pool, jax.Array]:
    """The pool after it was shown images, one after the other, and what it gives back for each.

    Until it is full it keeps and gives back the image itself. Then it does so with half of them: an old image, and the
    new one takes its place.

    Args:
      pool: of ``empty``.
      images: float32 [N, H, W, 3].
      draws: of ``draw``.

    Returns:
      the pool, and float32 [N, H, W, 3].
    """

    def one(pool: Pool, shown: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Pool, jax.Array]:
        image, exchange, place = shown
        stored, count = pool["images"], pool["count"]
        filling = count < len(stored)
        place = jnp.where(filling, count, place)
        old = stored[place]
        stored = stored.at[place].set(jnp.where(filling | exchange, image, old))
        given = jnp.where(exchange & ~filling, old, image)
        return {"images": stored, "count": jnp.minimum(count + 1, len(stored))}, given

    return jax.lax.scan(one, pool, (images, *draws))
