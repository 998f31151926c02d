r"""Measures the adversarial step, inference, compilation and the input, beside PyTorch doing the same work.

  python scripts/benchmark.py step --compare=torch --output=step.json        # on a GPU: released size, bfloat16
  python scripts/benchmark.py step --compare=torch --cores=1 --dtype=float32 --batch=1 \
      --source_size=256x128 --target_size=256x128                            # on a CPU
  python scripts/benchmark.py step --methods=fada,adaptsegnet_multi,clan                     # beside each other
  python scripts/benchmark.py infer --dtype=bfloat16
  python scripts/benchmark.py compile --devices=64 --target_size=1280x720    # needs no such devices
  python scripts/benchmark.py compile --on=h100                              # needs no GPU, but jax[cuda13]
  python scripts/benchmark.py compile --on=v5e-8                             # needs no TPU, but libtpu
  python scripts/benchmark.py input --compare=torch
  python scripts/benchmark.py input --memory_batches=2000
  python scripts/benchmark.py input --resume_step=1000

step and infer run each framework, or each of --methods, in processes of its own, one after the other in turns, and
print the median time, its quartiles, images/s, TFLOP/s and the share of a matrix product's on the same device.
compile runs nothing: it prints FLOPs against the least that the networks need, memory and what is moved to and from
it, communication and, for devices that --on names, a roofline. --batch grows to as many images as --on has devices.
step, infer and compile need jax, flax and optax, and for the comparison torch; neither data nor anything else. input
generates images at GTA5's size, 1914x1052, as PNGs of about 2.5 MB; the DataLoader reads those files, or PNGs of
1280x720, and fada-jax what it converts them to. Rates divide by CPU time.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from absl import flags

from fada_jax import cli
from fada_jax.errors import UserError
from fada_jax.evaluation import inference
from fada_jax.methods import SYSTEMS
from fada_jax.models import BACKBONES
from fada_jax.reporting import results
from fada_jax.scripts.benchmarks import compilation, devices, frameworks
from fada_jax.scripts.benchmarks.work import Work

COMMANDS = ("step", "infer", "compile", "input")


def scales_of(texts: Sequence[str]) -> tuple[float, ...]:
    """The factors that ``--scales`` names.

    Raises:
      UserError: none, or something else than numbers of at least 0.1.
    """
    try:
        scales = tuple(float(text) for text in texts)
    except ValueError:
        scales = ()
    if not scales or not all(0.1 <= scale <= 10 for scale in scales):
        raise UserError(f"--scales={','.join(texts)}: numbers from 0.1 to 10, separated by commas")
    return scales


def methods_of(texts: Sequence[str]) -> Sequence[str]:
    """The methods that ``--methods`` names.

    Raises:
      UserError: none, one twice, or one that has no adversarial step.
    """
    known = [name for name, system in SYSTEMS.items() if system.adapts]
    if not texts or len(set(texts)) < len(texts) or not set(texts) <= set(known):
        raise UserError(f"--methods={','.join(texts)}: different ones of {', '.join(known)}, separated by commas")
    return texts


def main(arguments: list[str]) -> None:
    command = arguments[0] if len(arguments) == 1 else ""
    if command not in COMMANDS:
        raise UserError(f"expected one of {', '.join(COMMANDS)}, for instance: scripts/benchmark.py step --batch=1")
    options = flags.FLAGS
    results.check(options.output, "--output")
    if command == "input":
        from fada_jax.scripts.benchmarks import training_input  # It alone needs TensorFlow and Pillow.

        result = training_input.run(options)
    else:
        if options.cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
        work = Work(
            options.backbone,
            options.classes,
            options.dtype,
            options.remat,
            cli.size("source_size", options.source_size, least=32),
            cli.size("target_size", options.target_size, least=32),
            options.batch,
            options.block_rows,
            scales_of(options.scales),
            options.flip,
            methods_of(options.methods)[0],
        )
        result = compilation.run(work, options) if command == "compile" else frameworks.run(command, work, options)
        result = {"command": command, "work": dataclasses.asdict(work), "date": time.strftime("%Y-%m-%d"), **result}
    if options.output:
        results.write(options.output, result)


def define_flags() -> None:
    """Flags of all commands; those of some name them."""
    flags.DEFINE_string("output", "", "JSON file to write.")
    flags.DEFINE_enum("compare", "", ["", "torch"], "Measure PyTorch beside it.")
    flags.DEFINE_list("methods", ["fada"], "step, compile: systems whose step it is, separated by commas.")
    flags.DEFINE_enum("backbone", "resnet101", BACKBONES, "Feature extractor.")
    flags.DEFINE_integer("classes", 19, "Classes.", lower_bound=2)
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Compute type.")
    flags.DEFINE_bool("remat", False, "Compute the insides of blocks again in the backward pass.")
    flags.DEFINE_string("source_size", "1280x720", "Source images.")
    flags.DEFINE_string("target_size", "1024x512", "Target images; infer: the images.")
    flags.DEFINE_integer("batch", 4, "Images of each domain; infer: images.", lower_bound=1)
    flags.DEFINE_integer("block_rows", 32, "Rows of full-resolution pixels that a loss holds; 0: all.", lower_bound=0)
    flags.DEFINE_integer("cores", 0, "step, infer: CPU cores to use; 0: all.", lower_bound=0)
    flags.DEFINE_integer("warmup", 2, "step, infer: calls of each process before the first that counts.", lower_bound=1)
    flags.DEFINE_integer("repeats", 20, "step, infer: calls of each process that count.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "step, infer: processes of each framework.", lower_bound=1)
    flags.DEFINE_list("scales", [str(scale) for scale in inference.MULTI_SCALE], "infer: scales.")
    flags.DEFINE_bool("flip", True, "infer: flip each scale too.")
    flags.DEFINE_enum("only", "", ["", "jax", "torch"], "step, infer: measure this one in this process.")
    flags.DEFINE_multi_enum("formulations", ["ours"], compilation.PROGRAMS, "compile: what to compile.")
    flags.DEFINE_enum("written_for", "", ["", "cpu", "gpu", "tpu"], "compile: the platform's convolutions; ours here.")
    flags.DEFINE_enum("on", "", ["", *devices.TARGETS], "compile: for such devices, which need not be here.")
    flags.DEFINE_integer("devices", 0, "compile: devices; several are simulated. 0: one, or the slice.", lower_bound=0)
    flags.DEFINE_integer("fsdp", 1, "compile: devices that share each parameter.", lower_bound=1)
    flags.DEFINE_integer("spatial", 1, "compile: devices that share the rows of an image.", lower_bound=1)
    flags.DEFINE_bool("cache", True, "compile: take what is compiled already from the cache.")
    flags.DEFINE_integer("batches", 12, "input: batches of 4 images for each figure.", lower_bound=1)
    flags.DEFINE_integer("memory_batches", 0, "input: resident memory over as many batches instead.", lower_bound=0)
    flags.DEFINE_integer("resume_step", 0, "input: time to the first batch from there instead.", lower_bound=0)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
