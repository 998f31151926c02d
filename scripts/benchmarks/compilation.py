"""Compilation of the step, for devices that need not be here: FLOPs, memory and communication, read off the program."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from absl import flags

from fada_jax import distributed
from fada_jax.errors import UserError
from fada_jax.scripts.benchmarks import traffic
from fada_jax.scripts.benchmarks.devices import CHIPS, TARGETS, Chip, absent, roofline
from fada_jax.scripts.benchmarks.formulations import written_for
from fada_jax.scripts.benchmarks.frameworks import flops_of
from fada_jax.scripts.benchmarks.programs import STEPS, our_inference
from fada_jax.scripts.benchmarks.traffic import BYTES
from fada_jax.scripts.benchmarks.work import Work, batch_shapes, create_states, inference_shapes

# XLA cannot time kernels without a GPU, and its Triton matrix products need that.
WITHOUT_A_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


# What ``--formulations`` names: steps, and inference at all scales.
INFERENCE = "infer"
PROGRAMS = (*STEPS, INFERENCE)

# Kind of collective -> bytes that a device sends for one byte of its result, on n devices in a ring.
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_COLLECTIVE = re.compile(rf"= (\(?.*?\)?) ({'|'.join(_SENT)})(-start)?\(")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: as in ``_SENT``.
      size: bytes of its result.
      members: devices that take part.
    """

    kind: str
    size: float
    members: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a ring."""
        return self.size * _SENT[self.kind](self.members)


def collectives(hlo: str, devices: int) -> Iterator[Collective]:
    """The collectives of a compiled program; one within a loop comes once."""
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            shapes, kind, started = match.groups()
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            if started and kind != "all-reduce":
                # Their tuple names the operands, too.
                arrays = arrays[len(arrays) // 2 :]
            total = sum(BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)
            yield Collective(kind, total, _members(line, devices))


def communication(hlo: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends in one step, by kind of collective, read off the compiled program."""
    sent: dict[str, float] = {}
    for collective in collectives(hlo, devices):
        sent[collective.kind] = sent.get(collective.kind, 0.0) + collective.sent
    return sent


def by_link(chip: Chip, hlo: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends in one step, by kind of link.

    Where a collective spans nodes, each node first sums or gathers among its own, and the members of each rank then
    exchange their share between the nodes.
    """
    sent = dict.fromkeys(chip.links, 0.0)
    within, *between = chip.links
    for collective in collectives(hlo, devices):
        node = chip.node or devices
        sent[within] += collective._replace(members=min(collective.members, node)).sent
        if between and collective.members > node:
            share = collective._replace(size=collective.size / node, members=collective.members // node)
            sent[between[0]] += share.sent
    return {link: size for link, size in sent.items() if size}


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


def _lowered(work: Work, formulation: str, mesh: Any, form: str) -> Any:
    """A program of ``PROGRAMS`` for shapes on a mesh, traced as the platform ``form`` runs it."""
    if formulation == INFERENCE:
        variables, images = inference_shapes(work)
        program = jax.jit(functools.partial(our_inference, work))
        whole = distributed.placed(variables, distributed.by_size(mesh, variables))
        shapes: tuple[Any, ...] = (whole, distributed.placed_batch(mesh, images))
    else:
        states = jax.eval_shape(lambda: create_states(work))
        shardings = distributed.by_size(mesh, states)
        program = jax.jit(
            functools.partial(STEPS[formulation], work),
            donate_argnums=0,
            out_shardings=(shardings, distributed.replicated(mesh)),
        )
        shapes = (distributed.placed(states, shardings), distributed.placed_batch(mesh, batch_shapes(work)))
    with written_for({"gpu": "cuda"}.get(form, form)):
        return distributed.on_mesh(mesh, program.lower)(*shapes)


def compile_once(
    work: Work,
    formulation: str,
    mesh: Any,
    form: str,
    options: dict[str, Any] | None = None,
    chip: Chip | None = None,
) -> dict[str, Any]:
    """Compiles one program from shapes and reads its cost off the result; nothing is run or allocated.

    Args:
      work: its size.
      formulation: of ``PROGRAMS``.
      mesh: devices to compile for.
      form: platform whose formulation of layers it is traced in: 'cpu', 'gpu' or 'tpu'.
      options: of the compiler.
      chip: the devices' figures, if they are known.
    """
    lowered = _lowered(work, formulation, mesh, form)
    began = time.perf_counter()
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        # The compilers for accelerators refuse programs that do not fit the memory.
        return {"refused": " ".join(str(error).split())[:300]}
    seconds = time.perf_counter() - began
    memory, cost, hlo = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "compile_seconds": seconds,
        # XLA's GPU compiler counts none.
        "flops": cost["flops"] if cost else None,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "held_bytes": memory.argument_size_in_bytes + results + memory.temp_size_in_bytes + code_bytes(memory, form),
        **_moved(hlo),
        "sent_bytes": communication(hlo, mesh.size),
        **({"link_bytes": by_link(chip, hlo, mesh.size)} if chip else {}),
    }


def _moved(hlo: str) -> dict[str, Any]:
    """Bytes that a program moves in all, and what moves most of them; the blocks of a stage are counted as one."""
    sizes: dict[str, float] = {}
    for mover in traffic.movers(hlo):
        source = re.sub(r"(layer[0-9])_[0-9]+", r"\1", mover.source)[-120:]
        name = f"{mover.kind}: {source}"
        sizes[name] = sizes.get(name, 0.0) + mover.size
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:10]
    return {"moved_bytes": sum(sizes.values()), "largest_movers": dict(largest)}


def code_bytes(memory: Any, form: str) -> float:
    """Bytes of the program itself, which TPUs hold beside the arrays."""
    return memory.generated_code_size_in_bytes if form == "tpu" else 0


def _estimate(chip: Chip, row: dict[str, Any]) -> dict[str, Any]:
    """Whether a program fits its device, and the time that it takes at least."""
    # Where the compiler counts no FLOPs, those that the networks need, if they are known.
    seconds = roofline(chip, row["flops"] or row["least_flops"] or 0.0, row["moved_bytes"], row["link_bytes"])
    return {
        "fits": row["held_bytes"] <= chip.memory,
        "estimated_seconds": seconds,
        "roofline_seconds": max(seconds.values()),
    }


def _print_row(name: str, row: dict[str, Any]) -> None:
    if "refused" in row:
        print(f"{name:<18}refused by the compiler: {row['refused']}", flush=True)
        return
    sent = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in row["sent_bytes"].items()) or "nothing"
    sizes = "".join(f"{row[key] / 2**30:>15.2f}" for key in ("temporary_bytes", "held_bytes", "moved_bytes"))
    flops, least = (math.nan if row[key] is None else row[key] for key in ("flops", "least_flops"))
    arithmetic = f"{flops / 1e12:>9.4f}{flops / least:>9.3f}"
    print(f"{name:<18}{row['compile_seconds']:>14.1f}{arithmetic}{sizes}  {sent}", flush=True)
    if "fits" in row:
        times = ", ".join(f"{what} {1000 * seconds:.1f}" for what, seconds in row["estimated_seconds"].items())
        print(f"{'':<18}{'fits' if row['fits'] else 'does NOT fit'}; estimated ms at the published figures: {times}")


def run(work: Work, options: flags.FlagValues) -> dict[str, Any]:
    """compile: each formulation, printed as a table."""
    if options.on:
        jax.config.update("jax_platforms", "cpu")
    elif options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
        jax.config.update("jax_platforms", "cpu")
    if not options.cache:
        jax.config.update("jax_enable_compilation_cache", False)
    chosen = absent(options.on, options.devices) if options.on else None
    chip = CHIPS[TARGETS[options.on].chip] if options.on else None
    mesh = distributed.make_mesh(options.devices or len(chosen or [0]), options.fsdp, options.spatial, chosen)
    if options.on and work.batch < distributed.batch_parts(mesh):
        work = dataclasses.replace(work, batch=distributed.batch_parts(mesh))
    distributed.check_batch("--batch", work.batch, mesh)
    programs = {name: (name, work) for name in options.formulations}
    if options.methods != ["fada"]:
        if options.formulations != ["ours"]:
            raise UserError(f"--formulations={','.join(options.formulations)}: those are FADA's; leave --methods out")
        programs = {name: ("ours", dataclasses.replace(work, method=name)) for name in options.methods}
    form = options.written_for or (chosen[0].platform if chosen else jax.default_backend())
    result: dict[str, Any] = {"devices": mesh.size, "batch": work.batch}
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"{mesh.size} device(s): {axes}; {work.batch} images of each domain; as {form} runs it; on each device:")
    print(
        f"{'':<18}{'compiled in s':>14}{'TFLOP':>9}{'/ least':>9}{'temporary GiB':>15}{'held GiB':>15}{'moved GiB':>15}"
        "  sent MiB"
    )
    for name, (formulation, work) in programs.items():
        row = compile_once(work, formulation, mesh, form, WITHOUT_A_GPU if form == "gpu" and chosen else None, chip)
        least = flops_of("infer" if formulation == INFERENCE else "step", work)
        row["least_flops"] = None if least is None else least / mesh.size
        if chip and "refused" not in row:
            row |= _estimate(chip, row)
        result[name] = row
        _print_row(name, row)
    if options.on:
        installed = {package.name: package.version for package in importlib.metadata.distributions()}
        names = ("jax", "jaxlib", "libtpu" if form == "tpu" else "jax-cuda13-pjrt")
        result["versions"] = {name: installed[name] for name in names if name in installed}
    return result
