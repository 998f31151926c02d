"""Prints the numerical errors against PyTorch as a markdown table: ``python scripts/measure_parity.py``.

Needs the test extra (PyTorch on the CPU). The measurements are those of ``tests/test_parity.py``.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import parity
import torch

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(parity.markdown(parity.measure_all()))
