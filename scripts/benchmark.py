"""Measures the adversarial step, inference, compilation and the input, beside PyTorch doing the same work.

  python scripts/benchmark.py step --compare=torch --output=step.json        # on a GPU: released size, bfloat16
  python scripts/benchmark.py step --compare=torch --cores=1 --dtype=float32 --batch=1 \\
      --source_size=256x128 --target_size=256x128                            # on a CPU
  python scripts/benchmark.py infer --dtype=bfloat16
  python scripts/benchmark.py compile --devices=64 --target_size=1280x720    # needs no such devices
  python scripts/benchmark.py compile --on=h100                              # needs no GPU, but jax[cuda12]
  python scripts/benchmark.py input --compare=torch

step and infer run each framework in processes of its own, one after the other in turns, and print the median time, its
quartiles, images/s, TFLOP/s and the share of a matrix product's on the same device. compile runs nothing: it prints
FLOPs against the least that the networks need, memory against the plain formulation, and communication. step, infer
and compile need jax, flax and optax, and for the comparison torch; neither data nor anything else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn
from jax.experimental import topologies

from fada_jax import cli, inference, losses, optim, sharding, steps
from fada_jax.errors import UserError
from fada_jax.methods import METHODS
from fada_jax.models import BACKBONES, ModelSpec, Segmenter, layers, resize_align_corners
from fada_jax.models.convolution import written_for
from fada_jax.preprocessing import IMAGENET, normalise

COMMANDS = ("step", "infer", "compile", "input")
# What XLA's GPU compiler asks a device for; it compiles for this one where none is.
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
# It cannot try kernels out, and its own matrix products need that.
WITHOUT_A_GPU = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
LAMBDA_ADV = 0.001


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
      backbone, classes, dtype, remat: of the network; released widths, frozen batch norm.
      source, target: (width, height) of the images of a domain; ``target`` is also that of inference.
      batch: images of each domain, or of inference.
      block_rows: see ``pixels.pixel_sums``.
      scales, flip: views of inference.
    """

    backbone: str
    classes: int
    dtype: str
    remat: bool
    source: tuple[int, int]
    target: tuple[int, int]
    batch: int
    block_rows: int
    scales: tuple[float, ...]
    flip: bool

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.backbone, self.classes, dtype=self.dtype, remat=self.remat)


METHOD = METHODS["fada"]()


def create_states(work: Work) -> tuple[steps.TrainState, steps.TrainState]:
    """Random G and D with the released optimizers; traceable."""
    g_spec = optim.OptimizerSpec()
    d_spec = optim.OptimizerSpec("adam", 1e-4, weight_decay=0.0, classifier_multiplier=1.0)
    generator = steps.create_generator(work.spec, g_spec, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    features = jax.eval_shape(generator.apply_fn, generator.variables, image)[1].shape[-1]
    outputs = METHOD.num_outputs(work.classes)
    return generator, steps.create_discriminator(outputs, features, d_spec, jax.random.key(1), dtype=work.dtype)


def batch_shapes(work: Work) -> tuple[dict, dict]:
    """Shapes of a source and of a target batch."""

    def images(size: tuple[int, int], *channels: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((work.batch, size[1], size[0], *channels), jnp.uint8)

    return {"image": images(work.source, 3), "label": images(work.source)}, {"image": images(work.target, 3)}


def random_batch(shapes: Any, classes: int) -> Any:
    """Random pixels and labels of ``shapes``, NumPy."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, classes if name == "label" else 256, x.shape, dtype=np.uint8)
        for name, x in shapes.items()
    }


def our_step(work: Work, generator: Any, discriminator: Any, source: Any, target: Any) -> Any:
    """The project's step."""
    return steps.adversarial_step(
        generator,
        discriminator,
        source,
        target,
        preprocessing=IMAGENET,
        method=METHOD,
        lambda_adv=LAMBDA_ADV,
        block_rows=work.block_rows,
    )


def plain_step(work: Work, generator: Any, discriminator: Any, source: Any, target: Any) -> Any:
    """The same iteration as one would write it down: all maps at full size, one loss for each network, Flax's ReLU,
    XLA's convolutions, each with its normalisation after it.

    The yardstick of memory and, in the tests, of the result.
    """
    with (
        written_for("tpu"),
        mock.patch.object(layers, "relu", nn.relu),
        mock.patch.object(layers, "relu_of_sum", lambda x, y: nn.relu(x + y)),
        mock.patch.object(layers, "convolve_and_normalise", lambda conv, norm, x, train: norm(conv(x), train)),
    ):
        return _plain_step(generator, discriminator, source, target)


def _plain_step(generator: Any, discriminator: Any, source: Any, target: Any) -> Any:
    x_s, x_t = (normalise(domain["image"], IMAGENET) for domain in (source, target))

    def forward(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, features = generator.apply_fn({"params": params, **generator.collections}, images, train=True)
        return resize_align_corners(logits, images.shape[1:3]), features

    def discriminate(params: Any, features: jax.Array, images: jax.Array) -> jax.Array:
        return resize_align_corners(discriminator.apply_fn({"params": params}, features), images.shape[1:3])

    def g_loss(params: Any) -> tuple[jax.Array, Any]:
        z_s, f_s = forward(params, x_s)
        z_t, f_t = forward(params, x_t)
        seg = losses.segmentation_loss(z_s, source["label"], METHOD.temperature)
        adv = losses.domain_loss(discriminate(discriminator.params, f_t, x_t), METHOD.class_knowledge(z_t), 0)
        return seg + LAMBDA_ADV * adv, (seg, adv, z_s, f_s, z_t, f_t)

    def d_loss(params: Any, z_s: Any, f_s: Any, z_t: Any, f_t: Any) -> jax.Array:
        on_source = losses.domain_loss(discriminate(params, f_s, x_s), METHOD.class_knowledge(z_s), 0)
        on_target = losses.domain_loss(discriminate(params, f_t, x_t), METHOD.class_knowledge(z_t), 1)
        return 0.5 * on_source + 0.5 * on_target

    (_, (seg, adv, *maps)), g_grads = jax.value_and_grad(g_loss, has_aux=True)(generator.params)
    d, d_grads = jax.value_and_grad(d_loss)(discriminator.params, *maps)
    metrics = {"loss_seg": seg, "loss_adv": adv, "loss_d": d}
    return generator.apply_gradients(grads=g_grads), discriminator.apply_gradients(grads=d_grads), metrics


STEPS = {"ours": our_step, "plain": plain_step}


def layer_flops(fn: Callable[..., Any], *shapes: Any) -> list[float]:
    """FLOPs of each convolution of ``fn``, in order; products with padding are not counted.

    Read off the shapes of what ``fn`` traces to on accelerators, so they know nothing of how it is computed.
    """
    found: list[float] = []

    def seen(size: int, outputs: int, taps: int, stride: int, dilation: int) -> int:
        """Pairs of an output and a tap, along one axis, that lie within the image."""
        pad = dilation * (taps - 1) // 2
        at = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation - pad
        return int(((at >= 0) & (at < size)).sum())

    def walk(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)
            if equation.primitive.name == "conv_general_dilated":
                (n, *size, _), kernel = (v.aval.shape for v in equation.invars)
                outputs = equation.outvars[0].aval.shape[1:3]
                strides, dilations = equation.params["window_strides"], equation.params["rhs_dilation"]
                pairs = [seen(*axis) for axis in zip(size, outputs, kernel[:2], strides, dilations, strict=True)]
                found.append(2.0 * n * pairs[0] * pairs[1] * kernel[2] * kernel[3])
            elif equation.primitive.name == "dot_general":
                found.append(2.0 * equation.outvars[0].aval.size * equation.invars[1].aval.shape[0])

    with written_for("gpu"):
        walk(jax.make_jaxpr(fn)(*shapes).jaxpr)
    return found


def least_flops(work: Work) -> float:
    """FLOPs that the convolutions of one iteration cannot do without.

    G: forward, gradient of the kernels, gradient of the inputs except the image's, on both domains. D: forward and
    gradient of the kernels once on each domain; gradient of the inputs for L_D behind its first layer, and for L_adv on
    the target in every layer, because the two losses differ at the logits.
    """
    generator, discriminator = jax.eval_shape(lambda: create_states(work))
    total = 0.0
    for domain, shapes in zip(("source", "target"), batch_shapes(work), strict=True):
        image = jax.ShapeDtypeStruct(shapes["image"].shape, jnp.float32)
        g = layer_flops(Segmenter(work.spec).apply, generator.variables, image)
        features = jax.eval_shape(generator.apply_fn, generator.variables, image)[1]
        d = layer_flops(discriminator.apply_fn, {"params": discriminator.params}, features)
        total += 3 * sum(g) - g[0] + 3 * sum(d) - d[0] + (sum(d) if domain == "target" else 0.0)
    return total


def inference_flops(work: Work) -> float:
    """FLOPs of the convolutions of one multi-scale call."""
    return sum(layer_flops(functools.partial(our_inference, work), *inference_shapes(work)))


def inference_shapes(work: Work) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Shapes of the variables and of the images."""
    variables = jax.eval_shape(lambda: create_states(work)[0].variables)
    return variables, jax.ShapeDtypeStruct((work.batch, work.target[1], work.target[0], 3), jnp.uint8)


def our_inference(work: Work, variables: Any, images: jax.Array) -> jax.Array:
    """Labels at the images' own size."""
    probabilities = inference.class_probabilities(
        Segmenter(work.spec).apply,
        variables,
        images,
        preprocessing=IMAGENET,
        size=images.shape[1:3],
        scales=work.scales,
        flip=work.flip,
    )
    return jnp.argmax(probabilities, axis=-1).astype(jnp.uint8)


def timed(once: Callable[[], None], warmup: int, repeats: int) -> dict[str, list[float]]:
    """Wall and CPU seconds of ``repeats`` calls that wait for their result."""
    result: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for i in range(warmup + repeats):
        began, cpu = time.perf_counter(), time.process_time()
        once()
        if i >= warmup:
            result["seconds"].append(time.perf_counter() - began)
            result["cpu_seconds"].append(time.process_time() - cpu)
    return result


def run_jax(command: str, work: Work, warmup: int, repeats: int) -> dict[str, Any]:
    """Times our side in this process."""
    accelerated = jax.default_backend() != "cpu"
    n = 8192 if accelerated else 2048
    a = jnp.ones((n, n), work.dtype)
    multiply = jax.jit(lambda a: a @ a)
    product = timed(lambda: jax.block_until_ready(multiply(a)), 2, 10 if accelerated else 3)

    began = time.perf_counter()
    if command == "step":
        states = jax.jit(functools.partial(create_states, work))()
        batches = [jax.device_put(random_batch(shapes, work.classes)) for shapes in batch_shapes(work)]
        step = jax.jit(functools.partial(our_step, work), donate_argnums=(0, 1)).lower(*states, *batches).compile()
        held = list(states)

        def once() -> None:
            *held[:], metrics = step(*held, *batches)
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
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use", resident_bytes())
    name = device.device_kind if accelerated else f"{platform.machine()}, {len(os.sched_getaffinity(0))} core(s)"
    return {
        **times,
        "flops": least_flops(work) if command == "step" else inference_flops(work),
        "compile_seconds": compile_seconds,
        "product_flops": 2.0 * n**3 / min(product["seconds"]),
        "peak_bytes": memory,
        "device": name,
        "version": f"jax {jax.__version__}",
    }


def resident_bytes() -> int:
    """The most memory that this process has had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_turns(command: str, frameworks: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs each framework in processes of its own, in turns; times are put together, the rest is of the last.

    Raises:
      UserError: one of them fails.
    """
    merged: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for framework in frameworks:
            arguments = [sys.executable, *sys.argv, f"--only={framework}"]
            result = subprocess.run(arguments, stdout=subprocess.PIPE, text=True)
            if result.returncode:
                raise UserError(f"{command} in {framework} failed with status {result.returncode}")
            measured = json.loads(result.stdout.splitlines()[-1])
            for key in ("seconds", "cpu_seconds"):
                measured[key] = merged.get(framework, {}).get(key, []) + measured[key]
            merged[framework] = measured
    return merged


def summary(measured: dict[str, Any], flops: float, images: int) -> dict[str, Any]:
    """Median and quartiles of the times, and the rates that follow from the median."""
    low, median, high = np.percentile(measured["seconds"], (25, 50, 75))
    return {
        **measured,
        "median_seconds": median,
        "quartiles": [low, high],
        "median_cpu_seconds": float(np.median(measured["cpu_seconds"])),
        "images_per_second": images / median,
        "flops_per_second": flops / median,
        "share_of_product": flops / median / measured["product_flops"],
    }


def run_frameworks(command: str, work: Work, options: flags.FlagValues) -> dict[str, Any]:
    """step and infer: all processes, printed as a table."""
    if options.only:
        run = run_jax
        if options.only == "torch":
            from fada_jax.scripts import benchmark_torch

            run = functools.partial(benchmark_torch.run, cores=options.cores)
        print(json.dumps(run(command, work, options.warmup, options.repeats)))
        sys.exit()
    frameworks = ["jax", *(["torch"] if options.compare == "torch" else [])]
    images = work.batch * (2 if command == "step" else 1)
    # This process leaves the device to the others.
    rounds = in_turns(command, frameworks, options.rounds)
    flops = rounds["jax"].pop("flops")
    result: dict[str, Any] = {name: summary(measured, flops, images) for name, measured in rounds.items()}
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


# Bytes that a device sends for one byte of a collective's result, on n devices in a ring.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def communication(hlo: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends in one step, by kind of collective, read off the compiled program.

    An instruction within a loop counts once.
    """
    sizes = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "f64": 8}
    sent: dict[str, float] = {}
    kinds = "|".join(_SENT)
    for line in hlo.splitlines():
        found = re.search(rf"= (\(?.*?\)?) ({kinds})(-start)?\(", line)
        if not found:
            continue
        shapes, kind, started = found.groups()
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        if started and kind != "all-reduce":
            # Their tuple names what goes in, too.
            arrays = arrays[len(arrays) // 2 :]
        total = sum(
            sizes[dtype] * float(np.prod([int(n) for n in dims.split(",") if n] or [1])) for dtype, dims in arrays
        )
        sent[kind] = sent.get(kind, 0.0) + total * _SENT[kind](_members(line, devices))
    return sent


def _members(line: str, devices: int) -> int:
    """Devices that take part in one collective, from the ways in which XLA writes its groups."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found.group(1))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    return devices


def absent_h100s(count: int) -> list[Any]:
    """GPUs to compile for, whatever is here.

    Raises:
      UserError: JAX's GPU compiler is not installed.
    """
    try:
        return topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{count}").devices
    except NotImplementedError as error:
        raise UserError('--on=h100 needs JAX\'s compiler for GPUs: pip install "jax[cuda12]"') from error


def compile_once(
    work: Work, formulation: str, mesh: Any, form: str, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compiles one step from shapes and reads its cost off the result; nothing is run or allocated."""
    states = jax.eval_shape(lambda: create_states(work))
    shardings = sharding.by_size(mesh, states)
    step = jax.jit(
        functools.partial(STEPS[formulation], work),
        donate_argnums=(0, 1),
        out_shardings=(*shardings, sharding.replicated(mesh)),
    )
    with written_for(form):
        shapes = (*sharding.placed(states, shardings), *sharding.placed_batch(mesh, batch_shapes(work)))
        lowered = sharding.on_mesh(mesh, step.lower)(*shapes)
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


def run_compile(work: Work, options: flags.FlagValues) -> dict[str, Any]:
    """compile: each formulation, printed as a table."""
    if options.on:
        jax.config.update("jax_platforms", "cpu")
    elif options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
        jax.config.update("jax_platforms", "cpu")
    if not options.cache:
        jax.config.update("jax_enable_compilation_cache", False)
    devices = absent_h100s(options.devices) if options.on else None
    mesh = sharding.make_mesh(options.devices, options.fsdp, options.spatial, devices)
    sharding.check_batch("--batch", work.batch, mesh)
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


def main(arguments: list[str]) -> None:
    command = arguments[0] if len(arguments) == 1 else ""
    if command not in COMMANDS:
        raise UserError(f"expected one of {', '.join(COMMANDS)}, for instance: scripts/benchmark.py step --batch=1")
    options = flags.FLAGS
    if command == "input":
        result = benchmark_input().run(options)
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
            tuple(float(scale) for scale in options.scales),
            options.flip,
        )
        result = run_compile(work, options) if command == "compile" else run_frameworks(command, work, options)
        result = {"command": command, "work": dataclasses.asdict(work), "date": time.strftime("%Y-%m-%d"), **result}
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")


def benchmark_input() -> Any:
    """The input's benchmark: it alone needs the input pipeline."""
    from fada_jax.scripts import benchmark_input

    return benchmark_input


def define_flags() -> None:
    """Flags of step, infer and compile, and those of all commands."""
    flags.DEFINE_string("output", "", "JSON file to write.")
    flags.DEFINE_enum("compare", "", ["", "torch"], "Measure PyTorch beside it.")
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
    flags.DEFINE_list("scales", list(inference.MULTI_SCALE), "infer: scales.")
    flags.DEFINE_bool("flip", True, "infer: flip each scale too.")
    flags.DEFINE_enum("only", "", ["", "jax", "torch"], "step, infer: measure this one in this process.")
    flags.DEFINE_multi_enum("formulations", ["ours"], list(STEPS), "compile: what to compile.")
    flags.DEFINE_enum("written_for", "", ["", "cpu", "gpu", "tpu"], "compile: the platform's convolutions; ours here.")
    flags.DEFINE_enum("on", "", ["", "h100"], "compile: for such GPUs, which need not be here.")
    flags.DEFINE_integer("devices", 1, "compile: devices; several are simulated.", lower_bound=1)
    flags.DEFINE_integer("fsdp", 1, "compile: devices that share each parameter.", lower_bound=1)
    flags.DEFINE_integer("spatial", 1, "compile: devices that share the rows of an image.", lower_bound=1)
    flags.DEFINE_bool("cache", True, "compile: take what is compiled already from the cache.")


if __name__ == "__main__":
    define_flags()
    if sys.argv[1:2] == ["input"]:
        benchmark_input().define_flags()
        flags.adopt_module_key_flags(benchmark_input())
    cli.run(main)
