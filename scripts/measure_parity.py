"""Prints the numerical errors against PyTorch as a markdown table, and writes them for docs/parity.md.

  python scripts/measure_parity.py [--output=docs/results/parity.json]

Needs a checkout and the test extra (PyTorch on the CPU). The measurements are those of ``tests/test_parity.py``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
from pathlib import Path

from absl import flags

from fada_jax import cli
from fada_jax.errors import UserError
from fada_jax.files import write_text
from fada_jax.reporting import results


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    try:
        import parity
        import torch
    except ImportError as error:
        raise UserError(f"measuring needs a checkout with its test extra: {error}") from error
    results.check(flags.FLAGS.output, "--output")
    torch.set_num_threads(1)
    rows = list(parity.measure_all())
    print(parity.markdown(rows))
    if not flags.FLAGS.output:
        return
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch"))
    head = {
        "made_by": results.MADE_BY,
        "command": f"python scripts/measure_parity.py --output={flags.FLAGS.output}",
        "date": datetime.date.today().isoformat(),
        "machine": f"CPU, {', '.join(versions)}",
    }
    measured = [
        {
            "name": row.name,
            "ours": float(f"{row.ours:.1e}"),
            "torch32": float(f"{row.torch32:.1e}"),
            "ratio": round(row.ours / row.torch32, 2) if row.torch32 else float("inf"),
            "limit": row.limit,
        }
        for row in rows
    ]
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    body = ",\n  ".join(map(json.dumps, measured))
    text = "{\n" + ",\n".join(lines) + f',\n "rows": [\n  {body}\n ]\n}}\n'
    write_text(flags.FLAGS.output, text, ours=results.is_ours)
    print(f"written: {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "JSON file of the rows; empty: none.")
    cli.run(main)
