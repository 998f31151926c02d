"""Prints, as JSON rows, the gradients of a released network measured in float64: ``parity_float64.py resnet101``.

In float32 PyTorch's own gradients are off by 1e-3 there.
"""

from __future__ import annotations

import dataclasses
import sys

import as_float64
import parity

if __name__ == "__main__":
    spec = {"resnet101": parity.RESNET101, "vgg16": parity.VGG16}[sys.argv[1]]
    rows = parity.measure_gradients(dataclasses.replace(spec, dtype="float64"), "soft")
    rows = [dataclasses.replace(row, name=f"{row.name}, ours in float64") for row in rows if "gradient" in row.name]
    as_float64.print_rows(rows)
