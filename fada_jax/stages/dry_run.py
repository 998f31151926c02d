"""What a stage would train and what a step takes, from shapes alone."""

from __future__ import annotations

import math
import time
from typing import Any

import jax

from fada_jax import distributed
from fada_jax.config import Config
from fada_jax.methods import States
from fada_jax.stages import data, program
from fada_jax.training.states import TrainState, output_shapes


def dry_run(config: Config) -> None:
    """Compiles one step and prints shapes, parameters, shardings, FLOPs and memory.

    Raises:
      UserError: the mesh cannot split the batch.
    """
    mesh = distributed.make_mesh(config.num_devices, config.mesh.fsdp, config.mesh.spatial)
    for name, stream in data.batch_shapes(config).items():
        count, height = stream["image"].shape[:2]
        distributed.check_batch(f"config.batch_size ({name})", count, mesh, config.accumulate_steps)
        distributed.check_height(f"config.{name}", height, mesh)
    began = time.perf_counter()
    states, batch, compiled = _compile_step(config, mesh)
    seconds = time.perf_counter() - began
    print(f"{config.task} {config.stage} ({config.method}), {config.model.backbone}, class set {config.class_set}")
    _print_batch(config, states, batch)
    for name, state in states.items():
        params = state.params if isinstance(state, TrainState) else state
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
        print(f"  {name}: {count:,} parameters, {size / 2**20:,.0f} MiB with optimizer state")
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"  {mesh.size} {jax.default_backend()} device(s): {axes}")
    for path, x in jax.tree.leaves_with_path({**states, **batch}):
        if not x.sharding.is_fully_replicated:
            print(f"    {jax.tree_util.keystr(path, simple=True, separator='/')}: {list(x.shape)} as {x.sharding.spec}")
    _print_cost(compiled, seconds)


def _compile_step(config: Config, mesh: jax.sharding.Mesh) -> tuple[States, dict, Any]:
    """The step compiled ahead of time from shapes alone.

    Returns:
      shapes of the states and of a batch, with their shardings, and the compiled step.
    """
    states = program.state_shapes(config)
    shardings = distributed.by_size(mesh, states)
    states = distributed.placed(states, shardings)
    batch = distributed.placed_batch(mesh, data.batch_shapes(config))
    step = program.jit_step(config, mesh, shardings)
    return states, batch, distributed.on_mesh(mesh, step.lower)(states, batch).compile()


def _print_batch(config: Config, states: Any, batch: Any) -> None:
    for name, stream in batch.items():
        for key, value in stream.items():
            print(f"  {name} {key}: {value.dtype}{list(value.shape)}")
    if config.kind.translates:
        return
    discriminator_logits = getattr(config.training_method, "discriminator_logits", None)
    for name, stream in batch.items():
        logits, features = output_shapes(states["generator"], stream["image"].shape)
        print(f"  {name} features: {features.dtype}{list(features.shape)}, logits: {logits.dtype}{list(logits.shape)}")
        if discriminator_logits:
            logits = jax.eval_shape(discriminator_logits, states["discriminator"], logits, features)
            print(f"  {name} discriminator logits: {logits.dtype}{list(logits.shape)}")


def _print_cost(compiled: Any, seconds: float) -> None:
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    moved = cost.get("bytes accessed", math.nan) / 2**30
    print(f"  compiled in {seconds:.0f} s; on each device, for one step:")
    print(f"    {cost.get('flops', math.nan) / 1e12:,.3f} TFLOP, {moved:,.1f} GiB moved")
    parts = f"states and batch {arguments:,.2f}, temporary {temporary:,.2f}"
    print(f"    {arguments + temporary:,.2f} GiB at its peak: {parts}")
