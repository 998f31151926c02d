"""States and compiled step of a stage, from its config alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fada_jax import distributed
from fada_jax.config import Config
from fada_jax.methods import Metrics, States
from fada_jax.training import fourier, loop
from fada_jax.training.states import abstract

Step = Callable[[States, Any], tuple[States, Metrics]]


def state_shapes(config: Config) -> States:
    """Shapes of the states of a stage, without any array.

    Raises:
      UserError: no network can be built from the config.
    """
    return abstract(lambda: create_states(config), "config.model, config.discriminator: no network can be built so")


def create_states(config: Config) -> States:
    """Freshly initialised states of a stage; traceable."""
    return config.training_method.init(jax.random.key(config.seed), config.training_spec)


def make_step(config: Config) -> Step:
    """The pure step of a stage over its states and a batch of its streams."""
    method, spec = config.training_method, config.training_spec

    def step(states: States, batch: Any) -> tuple[States, Metrics]:
        done = states["generator"].step
        rng = jax.random.fold_in(jax.random.key(config.seed), done)
        batch = fourier.restyled(batch, config.fourier_beta)
        return method.step(states, batch, rng, done / config.total_steps, spec)

    return loop.skip_non_finite(step) if config.on_non_finite == "skip" else step


def jit_step(config: Config, mesh: jax.sharding.Mesh, shardings: Any) -> jax.stages.Wrapped:
    """``make_step``, jitted for states that are sharded so, which it takes over."""
    return jax.jit(make_step(config), donate_argnums=0, out_shardings=(shardings, distributed.replicated(mesh)))


def fresh_states(config: Config, mesh: jax.sharding.Mesh) -> States:
    """``create_states`` on a mesh."""
    shapes = state_shapes(config)
    # XLA compiles what runs once without optimisation on CPUs, in a quarter of the time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    # Leaves alone: each call of create_states makes optimizers of its own, which JAX takes for another structure.
    leaves = jax.jit(
        lambda: jax.tree.leaves(create_states(config)),
        out_shardings=jax.tree.leaves(distributed.by_size(mesh, shapes)),
        compiler_options=options,
    )()
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
