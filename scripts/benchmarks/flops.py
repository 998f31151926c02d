"""FLOPs that the convolutions of an iteration or of inference cannot do without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax.models import Segmenter
from fada_jax.scripts.benchmarks.formulations import written_for
from fada_jax.scripts.benchmarks.programs import our_inference
from fada_jax.scripts.benchmarks.work import Work, batch_shapes, create_states, inference_shapes


def layer_flops(fn: Callable[..., Any], *shapes: Any) -> list[float]:
    """FLOPs of each convolution of ``fn``, in order; products with padding are not counted.

    Read off the shapes of what ``fn`` traces to on accelerators, so they know nothing of how it is computed.
    """
    flops: list[float] = []

    def pairs(size: int, outputs: int, taps: int, stride: int, dilation: int) -> int:
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
                axes = zip(size, outputs, kernel[:2], strides, dilations, strict=True)
                rows, columns = (pairs(*axis) for axis in axes)
                flops.append(2.0 * n * rows * columns * kernel[2] * kernel[3])
            elif equation.primitive.name == "dot_general":
                flops.append(2.0 * equation.outvars[0].aval.size * equation.invars[1].aval.shape[0])

    with written_for("cuda"):
        walk(jax.make_jaxpr(fn)(*shapes).jaxpr)
    return flops


def least_flops(work: Work) -> float:
    """FLOPs that the convolutions of one iteration of FADA cannot do without.

    G: forward, gradient of the kernels, gradient of the inputs except the image's, on both domains. D: forward and
    gradient of the kernels once on each domain; gradient of the inputs for L_D behind its first layer, and for L_adv on
    the target in every layer, because the two losses differ at the logits.
    """
    states = jax.eval_shape(lambda: create_states(work))
    generator, discriminator = states["generator"], states["discriminator"]
    total = 0.0
    for domain, shapes in batch_shapes(work).items():
        image = jax.ShapeDtypeStruct(shapes["image"].shape, jnp.float32)
        g = layer_flops(Segmenter(work.spec).apply, generator.variables, image)
        features = jax.eval_shape(generator.apply_fn, generator.variables, image)[1]
        d = layer_flops(discriminator.apply_fn, {"params": discriminator.params}, features)
        total += 3 * sum(g) - g[0] + 3 * sum(d) - d[0] + (sum(d) if domain == "target" else 0.0)
    return total


def inference_flops(work: Work) -> float:
    """FLOPs of the convolutions of one multi-scale call."""
    return sum(layer_flops(functools.partial(our_inference, work), *inference_shapes(work)))
