"""Times of the step and of inference, each framework in processes of its own, in turns."""

from __future__ import annotations

import functools
import json
import math
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
        batch = jax.device_put(random_batch(batch_shapes(work), work.classes))
        step = jax.jit(functools.partial(our_step, work), donate_argnums=0).lower(states, batch).compile()

        def once() -> None:
            nonlocal states
            states, metrics = step(states, batch)
            jax.block_until_ready(metrics)
    else:
        variables = jax.jit(lambda: create_states(work)["generator"].variables)()
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
        "flops": flops_of(command, work),
        "compile_seconds": compile_seconds,
        "product_flops": product,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use", resident_bytes()),
        "device": name,
        "version": f"jax {jax.__version__}",
    }


def flops_of(command: str, work: Work) -> float | None:
    """FLOPs that are needed at least; None for the step of another method than FADA, for which nobody counted them."""
    if command == "infer":
        return inference_flops(work)
    return least_flops(work) if work.method == "fada" else None


def in_turns(command: str, runs: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs each of ``runs``, more arguments by name, in processes of its own, in turns.

    Times are put together, the rest is of the last process.

    Raises:
      UserError: one of them fails.
    """
    merged: dict[str, dict[str, Any]] = {}
    for name in list(runs) * rounds:
        result = subprocess.run([sys.executable, *sys.argv, *runs[name]], stdout=subprocess.PIPE, text=True)
        if result.returncode:
            raise UserError(f"{command} of {name} failed with status {result.returncode}")
        measured = json.loads(result.stdout.splitlines()[-1])
        for key in ("seconds", "cpu_seconds"):
            measured[key] = merged.get(name, {}).get(key, []) + measured[key]
        merged[name] = measured
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
    first, *others = runs = chosen(options)
    images = work.batch * (2 if command == "step" else 1)
    # This process leaves the device to the others.
    measured = in_turns(command, runs, options.rounds)
    flops = measured[first]["flops"]
    result: dict[str, Any] = {name: summary(row, row.pop("flops", flops), images) for name, row in measured.items()}
    needed = f"{flops / 1e12:.3f} TFLOP for " if flops else ""
    print(f"{needed}{images} images on {result[first]['device']}, {work.dtype}")
    _print_table(result)
    base = options.compare or first
    if others:
        keys = ("median_seconds", "median_cpu_seconds")
        ratios = {name: {key: row[key] / result[base][key] for key in keys} for name, row in result.items()}
        del ratios[base]
        result["ratio"] = ratios["jax"] if options.compare else ratios
        for name, ratio in ratios.items():
            print(f"time of {name} over that of {base}: {{:.2f}}, CPU time: {{:.2f}}".format(*ratio.values()))
    return {"flops": flops, **result}


def chosen(options: flags.FlagValues) -> dict[str, list[str]]:
    """What is measured beside each other: frameworks, or methods; arguments of their processes by name.

    Raises:
      UserError: several methods beside PyTorch, which has FADA alone.
    """
    if options.compare and options.methods != ["fada"]:
        raise UserError(f"--compare={options.compare}: PyTorch's side is FADA's step; leave --methods out")
    if len(options.methods) > 1:
        return {name: ["--only=jax", f"--methods={name}"] for name in options.methods}
    return {name: [f"--only={name}"] for name in ("jax", options.compare) if name}


def _print_table(result: dict[str, dict[str, Any]]) -> None:
    print(f"{'':<18}{'median s':>10}{'quartiles':>20}{'CPU s':>9}{'images/s':>10}{'TFLOP/s':>9}{'share':>7}{'GiB':>7}")
    for name, row in result.items():
        quartiles = "{:.4f} - {:.4f}".format(*row["quartiles"])
        rates = f"{row.get('flops_per_second', math.nan) / 1e12:>9.3f}{row.get('share_of_product', math.nan):>7.0%}"
        print(
            f"{name:<18}{row['median_seconds']:>10.4f}{quartiles:>20}{row['median_cpu_seconds']:>9.3f}"
            f"{row['images_per_second']:>10.2f}{rates}{row['peak_bytes'] / 2**30:>7.2f}"
        )
