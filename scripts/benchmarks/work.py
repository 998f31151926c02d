"""The work of a benchmark: networks, images and views; states and batches of that size."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fada_jax import methods
from fada_jax.methods import Method, States, TrainingSpec
from fada_jax.models import ComputeType, ModelSpec
from fada_jax.preprocessing import IMAGENET
from fada_jax.training.optimizers import OptimizerSpec

# T and lambda of all systems, on equal terms; neither changes what a step costs.
SHARED = {"temperature": 1.8, "lambda_adv": 0.001}


@dataclasses.dataclass(frozen=True)
class Work:
    """The size of a benchmark.

    Attributes:
      backbone, classes, dtype, remat: of the network; released widths, frozen batch norm.
      source, target: (width, height) of the images of a domain; ``target`` is also that of inference.
      batch: images of each domain, or of inference.
      block_rows: see ``pixels.pixel_sums``.
      scales, flip: views of inference.
      method: system whose step it is.
    """

    backbone: str
    classes: int
    dtype: ComputeType
    remat: bool
    source: tuple[int, int]
    target: tuple[int, int]
    batch: int
    block_rows: int
    scales: tuple[float, ...]
    flip: bool
    method: str = "fada"

    @property
    def spec(self) -> ModelSpec:
        heads = methods.SYSTEMS[self.method].heads
        return ModelSpec(self.backbone, self.classes, dtype=self.dtype, remat=self.remat, heads=heads)

    @property
    def training(self) -> TrainingSpec:
        """The released optimizers."""
        d_optimizer = OptimizerSpec("adam", 1e-4, weight_decay=0.0, classifier_multiplier=1.0)
        return TrainingSpec(self.spec, IMAGENET, OptimizerSpec(), d_optimizer, block_rows=self.block_rows)

    @property
    def system(self) -> Method:
        """The method with its own options."""
        return methods.build(self.method, SHARED, methods.options_of(self.method))


def create_states(work: Work) -> States:
    """Random networks and fresh optimizers; traceable."""
    return work.system.init(jax.random.key(0), work.training)


def batch_shapes(work: Work) -> dict[str, dict]:
    """Shapes of a source and of a target batch."""

    def images(size: tuple[int, int], *channels: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((work.batch, size[1], size[0], *channels), jnp.uint8)

    source = {"image": images(work.source, 3), "label": images(work.source)}
    return {"source": source, "target": {"image": images(work.target, 3)}}


def inference_shapes(work: Work) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Shapes of the variables and of the images."""
    variables = jax.eval_shape(lambda: create_states(work)["generator"].variables)
    return variables, jax.ShapeDtypeStruct((work.batch, work.target[1], work.target[0], 3), jnp.uint8)


def random_batch(shapes: Any, classes: int) -> Any:
    """Random pixels and labels of ``shapes``, NumPy."""
    rng = np.random.default_rng(0)

    def random(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.integers(0, classes if path[-1].key == "label" else 256, x.shape, dtype=np.uint8)

    return jax.tree_util.tree_map_with_path(random, shapes)
