"""Prints, as JSON rows, ``translation_parity.measure`` with all of ours in float64: ``translation_float64.py CASE...``.

As in ``parity_float64.py``, every float32 of ours is made a float64 before the library is imported.
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

import torch  # noqa: E402
import translation_parity  # noqa: E402

from fada_jax.models import layers  # noqa: E402
from fada_jax.training import pixels  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    # Folded batch norms and interpolation weights are made in NumPy.
    layers.np = pixels.np = types.SimpleNamespace(**{**vars(np), "float32": np.float64})
    rows = [row for name in sys.argv[1:] for row in translation_parity.measure(name, "float64")]
    print(json.dumps([dataclasses.asdict(row) for row in rows]))
