"""Makes every float32 of ours a float64 for what is imported after it; scripts of parity in float64 begin with it.

In float32 rounding flips ReLUs of a deep random network; so what is left is the difference in method.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

jax.config.update("jax_enable_x64", True)
jnp.float32 = jnp.float64

from fada_jax.models import layers  # noqa: E402
from fada_jax.training import pixels  # noqa: E402

torch.set_num_threads(1)
# Folded batch norms and interpolation weights are made in NumPy.
layers.np = pixels.np = types.SimpleNamespace(**{**vars(np), "float32": np.float64})


def print_rows(rows: Iterable[Any]) -> None:
    """Prints dataclasses as a line of JSON."""
    print(json.dumps([dataclasses.asdict(row) for row in rows]))
