"""TrainStates: the parameters of a network with its optimizer state and what it holds beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.errors import FlaxError
from flax.training import train_state

from fada_jax.errors import UserError
from fada_jax.models import Discriminator, ModelSpec, Outputs, PatchDiscriminator, Segmenter, fold_batch_norm
from fada_jax.training import optimizers

T = TypeVar("T")


class TrainState(train_state.TrainState):
    """Flax's TrainState plus what the network holds beside its parameters.

    Attributes:
      collections: ``batch_stats`` of the batch norms and ``folded`` of frozen ones; empty without them.
    """

    collections: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """All collections, as ``apply_fn`` takes them."""
        return {"params": self.params, **self.collections}


def abstract(create: Callable[[], T], what: str) -> T:
    """Shapes of what ``create`` makes, without any array.

    Args:
      create: makes states; traceable.
      what: names in the error what they are made from.

    Raises:
      UserError: no network can be built so.
    """
    try:
        return jax.eval_shape(create)
    except (TypeError, ValueError, FlaxError) as error:
        # Flax's layers and JAX's shapes raise these about numbers that do not fit together.
        problem = " ".join(str(error).split("\n\n")[0].split())[:200]
        raise UserError(f"{what}: {problem}") from error


def create_generator(spec: ModelSpec, optimizer: optimizers.OptimizerSpec, rng: jax.Array) -> TrainState:
    """Freshly initialised G with its optimizer state; traceable, so ``jax.eval_shape`` gives its shapes."""
    model = Segmenter(spec)
    # Parameters do not depend on the image size: a small one keeps initialisation cheap.
    variables = dict(model.init(rng, jnp.zeros((1, 32, 32, 3))))
    params = variables.pop("params")
    tx = optimizers.generator_optimizer(optimizer, spec)
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx, collections=variables)


def create_discriminator(
    num_outputs: int,
    features: int,
    optimizer: optimizers.OptimizerSpec,
    rng: jax.Array,
    *,
    widths: tuple[int, ...] = (256, 128),
    dtype: str = "float32",
) -> TrainState:
    """Freshly initialised D for maps of ``features`` channels, with its optimizer state."""
    model = Discriminator(num_outputs, widths, jnp.dtype(dtype))
    params = model.init(rng, jnp.zeros((1, 8, 8, features)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optimizers.discriminator_optimizer(optimizer))


def create_patch_discriminator(
    channels: int, optimizer: optimizers.OptimizerSpec, rng: jax.Array, *, width: int = 64, dtype: str = "float32"
) -> TrainState:
    """Freshly initialised ``PatchDiscriminator`` of maps of so many channels, with its optimizer state."""
    model = PatchDiscriminator(width, jnp.dtype(dtype))
    params = model.init(rng, jnp.zeros((1, 64, 64, channels)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optimizers.discriminator_optimizer(optimizer))


def create_network(module: nn.Module, tx: optax.GradientTransformation, rng: jax.Array, channels: int) -> TrainState:
    """Freshly initialised state of a module of maps of so many channels, trained by ``tx``."""
    params = module.init(rng, jnp.zeros((1, 8, 8, channels)))["params"]
    return TrainState.create(apply_fn=module.apply, params=params, tx=tx)


def create_pair(
    module: nn.Module, tx: optax.GradientTransformation, keys: Mapping[str, jax.Array], size: int = 32
) -> TrainState:
    """Freshly initialised state of several networks of one module of images, trained together by ``tx``.

    Args:
      module: of all of them; ``apply_fn`` is that of one.
      tx: their optimizer.
      keys: of each network, by its name among the parameters.
      size: of the images that it is initialised with.
    """
    params = {name: module.init(key, jnp.zeros((1, size, size, 3)))["params"] for name, key in keys.items()}
    return TrainState.create(apply_fn=module.apply, params=params, tx=tx)


def create_frozen(spec: ModelSpec, rng: jax.Array) -> TrainState:
    """State of a segmenter that nothing trains, without an optimizer's state."""
    fresh = create_generator(spec, optimizers.OptimizerSpec(), rng)
    return TrainState.create(
        apply_fn=fresh.apply_fn, params=fresh.params, tx=optax.identity(), collections=fresh.collections
    )


def replace_weights(state: TrainState, params: Any, batch_stats: Any) -> TrainState:
    """``state`` with the weights of a checkpoint and a fresh fold of its frozen batch norms; optimizer untouched."""
    collections = dict(state.collections)
    if "batch_stats" in collections:
        collections["batch_stats"] = batch_stats
    if "folded" in collections:
        collections["folded"] = fold_batch_norm(batch_stats)
    return state.replace(params=params, collections=collections)


def generator_outputs(generator: TrainState, images: tuple[int, ...] = (1, 64, 64, 3)) -> Outputs:
    """Shapes of what every classifier of G gives for images of shape [N, H, W, 3]."""
    apply = functools.partial(generator.apply_fn, train=False, method="outputs")
    return jax.eval_shape(apply, generator.variables, jax.ShapeDtypeStruct(images, jnp.float32))


def output_shapes(generator: TrainState, images: tuple[int, ...] = (1, 64, 64, 3)) -> tuple[Any, Any]:
    """Shapes of the logits and features that G gives for images of shape [N, H, W, 3]."""
    apply = functools.partial(generator.apply_fn, train=False)
    return jax.eval_shape(apply, generator.variables, jax.ShapeDtypeStruct(images, jnp.float32))
