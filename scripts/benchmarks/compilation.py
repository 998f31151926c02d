"""Compilation of the step, for devices that need not be here: FLOPs, memory and communication, read off the program."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies

from fada_jax import distributed
from fada_jax.errors import UserError
from fada_jax.scripts.benchmarks.flops import least_flops
from fada_jax.scripts.benchmarks.formulations import written_for
from fada_jax.scripts.benchmarks.programs import STEPS
from fada_jax.scripts.benchmarks.work import Work, batch_shapes, create_states

# Description of an H100; XLA's GPU compiler asks the device for it if the machine has a GPU.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84942979072
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# XLA cannot time kernels without a GPU, and its Triton matrix products need that.
WITHOUT_A_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


# Kind of collective -> bytes that a device sends for one byte of its result, on n devices in a ring.
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_COLLECTIVE = re.compile(rf"= (\(?.*?\)?) ({'|'.join(_SENT)})(-start)?\(")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "f64": 8}


def communication(hlo: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends in one step, by kind of collective, read off the compiled program.

    An instruction within a loop counts once.
    """
    sent: dict[str, float] = {}
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            shapes, kind, started = match.groups()
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            if started and kind != "all-reduce":
                # Their tuple names the operands, too.
                arrays = arrays[len(arrays) // 2 :]
            total = sum(_BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)
            sent[kind] = sent.get(kind, 0.0) + total * _SENT[kind](_members(line, devices))
    return sent


def _members(line: str, devices: int) -> int:
    """Devices that take part in one collective, from the ways in which XLA writes its groups."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match.group(1))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match.group(1).split(","))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", match.group(2)))
    return devices


def absent_h100s(count: int) -> list[Any]:
    """GPUs to compile for, whatever is here.

    Raises:
      UserError: JAX's GPU compiler is not installed.
    """
    try:
        return topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{count}").devices
    except NotImplementedError as error:
        raise UserError("--on=h100 needs JAX's compiler for GPUs: pip install 'fada-jax[cuda]'") from error


def compile_once(
    work: Work, formulation: str, mesh: Any, form: str, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compiles one step from shapes and reads its cost off the result; nothing is run or allocated."""
    states = jax.eval_shape(lambda: create_states(work))
    shardings = distributed.by_size(mesh, states)
    step = jax.jit(
        functools.partial(STEPS[formulation], work),
        donate_argnums=(0, 1),
        out_shardings=(*shardings, distributed.replicated(mesh)),
    )
    with written_for({"gpu": "cuda"}.get(form, form)):
        shapes = (*distributed.placed(states, shardings), *distributed.placed_batch(mesh, batch_shapes(work)))
        lowered = distributed.on_mesh(mesh, step.lower)(*shapes)
    began = time.perf_counter()
    compiled = lowered.compile(options)
    seconds = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "compile_seconds": seconds,
        # XLA's GPU compiler counts none.
        "flops": cost["flops"] if cost else math.nan,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "sent_bytes": communication(compiled.as_text(), mesh.size),
    }


def run(work: Work, options: flags.FlagValues) -> dict[str, Any]:
    """compile: each formulation, printed as a table."""
    if options.on:
        jax.config.update("jax_platforms", "cpu")
    elif options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
        jax.config.update("jax_platforms", "cpu")
    if not options.cache:
        jax.config.update("jax_enable_compilation_cache", False)
    devices = absent_h100s(options.devices) if options.on else None
    mesh = distributed.make_mesh(options.devices, options.fsdp, options.spatial, devices)
    distributed.check_batch("--batch", work.batch, mesh)
    least = least_flops(work) / mesh.size
    form = options.written_for or ("gpu" if options.on else jax.default_backend())
    result: dict[str, Any] = {"least_flops": least}
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"{mesh.size} device(s): {axes}; as {form} runs it; on each device {least / 1e12:.4f} TFLOP at least")
    print(f"{'':<8}{'compiled in s':>14}{'TFLOP':>9}{'/ least':>9}{'temporary GiB':>15}{'held GiB':>10}  sent MiB")
    for name in options.formulations:
        row = result[name] = compile_once(work, name, mesh, form, WITHOUT_A_GPU if options.on else None)
        sent = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in row["sent_bytes"].items()) or "nothing"
        print(
            f"{name:<8}{row['compile_seconds']:>14.1f}{row['flops'] / 1e12:>9.4f}{row['flops'] / least:>9.3f}"
            f"{row['temporary_bytes'] / 2**30:>15.2f}{row['argument_bytes'] / 2**30:>10.2f}  {sent}",
            flush=True,
        )
    return result
