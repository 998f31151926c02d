"""Prints, as JSON rows, the gradients of a released network measured in float64: ``parity_float64.py resnet101``.

In float32 rounding flips ReLUs of so deep a random network, and PyTorch's own gradients are off by 1e-3. Here every
float32 of ours is made a float64 before the library is imported, so that what is left is the difference in method.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
jnp.float32 = jnp.float64

import parity  # noqa: E402
import torch  # noqa: E402

from fada_jax.models import layers  # noqa: E402
from fada_jax.training import pixels  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    # Folded batch norms and interpolation weights are made in NumPy.
    layers.np = pixels.np = types.SimpleNamespace(**{**vars(np), "float32": np.float64})
    spec = {"resnet101": parity.RESNET101, "vgg16": parity.VGG16}[sys.argv[1]]
    rows = parity.measure_gradients(dataclasses.replace(spec, dtype="float64"), "soft")
    rows = [dataclasses.replace(row, name=f"{row.name}, ours in float64") for row in rows if "gradient" in row.name]
    print(json.dumps([dataclasses.asdict(row) for row in rows]))
