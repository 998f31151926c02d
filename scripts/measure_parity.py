"""Prints the numerical errors against PyTorch as a markdown table.

  python scripts/measure_parity.py > parity.md

Needs a checkout and the test extra (PyTorch on the CPU). The measurements are those of ``tests/test_parity.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fada_jax import cli
from fada_jax.errors import UserError


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes none")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    try:
        import parity
        import torch
    except ImportError as error:
        raise UserError(f"measuring needs a checkout with its test extra: {error}") from error
    torch.set_num_threads(1)
    print(parity.markdown(parity.measure_all()))


if __name__ == "__main__":
    cli.run(main)
