"""Times of the step and of inference, each framework in processes of its own, in turns."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from fada_jax.errors import UserError
from fada_jax.scripts.benchmarks.flops import inference_flops, least_flops
from fada_jax.scripts.benchmarks.programs import our_inference, our_step
from fada_jax.scripts.benchmarks.timing import product_flops, resident_bytes, summary, timed
from fada_jax.scripts.benchmarks.work import Work, batch_shapes, create_states, inference_shapes, random_batch


def run_jax(command: str, work: Work, warmup: int, repeats: int) -> dict[str, Any]:
    """Times our side in this process."""
    accelerated = jax.default_backend() != "cpu"
    multiply = jax.jit(lambda a: a @ a)
    product = product_flops(
        lambda n: jnp.ones((n, n), work.dtype), lambda a: jax.block_until_ready(multiply(a)), accelerated
    )
    began = time.perf_counter()
    if command == "step":
        states = jax.jit(functools.partial(create_states, work))()
        batches = [jax.device_put(random_batch(shapes, work.classes)) for shapes in batch_shapes(work)]
        step = jax.jit(functools.partial(our_step, work), donate_argnums=(0, 1)).lower(*states, *batches).compile()

        def once() -> None:
            nonlocal states
            *states, metrics = step(*states, *batches)
            jax.block_until_ready(metrics)
    else:
        variables = jax.jit(lambda: create_states(work)[0].variables)()
        images = jax.device_put(random_batch({"image": inference_shapes(work)[1]}, work.classes)["image"])
        step = jax.jit(functools.partial(our_inference, work)).lower(variables, images).compile()

        def once() -> None:
            jax.block_until_ready(step(variables, images))

    compile_seconds = time.perf_counter() - began
    times = timed(once, warmup, repeats)
    device = jax.devices()[0]
    name = device.device_kind if accelerated else f"{platform.machine()}, {len(os.sched_getaffinity(0))} core(s)"
    return {
        **times,
        "flops": least_flops(work) if command == "step" else inference_flops(work),
        "compile_seconds": compile_seconds,
        "product_flops": product,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use", resident_bytes()),
        "device": name,
        "version": f"jax {jax.__version__}",
    }


def in_turns(command: str, frameworks: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs each framework in processes of its own, in turns; times are put together, the rest is of the last.

    Raises:
      UserError: one of them fails.
    """
    merged: dict[str, dict[str, Any]] = {}
    for framework in frameworks * rounds:
        arguments = [sys.executable, *sys.argv, f"--only={framework}"]
        result = subprocess.run(arguments, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            raise UserError(f"{command} in {framework} failed with status {result.returncode}")
        measured = json.loads(result.stdout.splitlines()[-1])
        for key in ("seconds", "cpu_seconds"):
            measured[key] = merged.get(framework, {}).get(key, []) + measured[key]
        merged[framework] = measured
    return merged


def run(command: str, work: Work, options: flags.FlagValues) -> dict[str, Any]:
    """step and infer: all processes, printed as a table."""
    if options.only:
        run = run_jax
        if options.only == "torch":
            from fada_jax.scripts.benchmarks import pytorch  # It alone needs PyTorch.

            run = functools.partial(pytorch.run, cores=options.cores)
        print(json.dumps(run(command, work, options.warmup, options.repeats)))
        sys.exit()
    frameworks = ["jax", *(["torch"] if options.compare == "torch" else [])]
    images = work.batch * (2 if command == "step" else 1)
    # This process leaves the device to the others.
    measured = in_turns(command, frameworks, options.rounds)
    flops = measured["jax"].pop("flops")
    result: dict[str, Any] = {name: summary(row, flops, images) for name, row in measured.items()}
    print(f"{flops / 1e12:.3f} TFLOP for {images} images on {result['jax']['device']}, {work.dtype}")
    print(f"{'':<8}{'median s':>10}{'quartiles':>20}{'CPU s':>9}{'images/s':>10}{'TFLOP/s':>9}{'share':>7}{'GiB':>7}")
    for name, row in result.items():
        quartiles = "{:.4f} - {:.4f}".format(*row["quartiles"])
        print(
            f"{name:<8}{row['median_seconds']:>10.4f}{quartiles:>20}{row['median_cpu_seconds']:>9.3f}"
            f"{row['images_per_second']:>10.2f}{row['flops_per_second'] / 1e12:>9.3f}"
            f"{row['share_of_product']:>7.0%}{row['peak_bytes'] / 2**30:>7.2f}"
        )
    if "torch" in result:
        ratios = {key: result["jax"][key] / result["torch"][key] for key in ("median_seconds", "median_cpu_seconds")}
        result["ratio"] = ratios
        print("time over PyTorch's: {:.2f}, CPU time: {:.2f}".format(*ratios.values()))
    return {"flops": flops, **result}
