"""Prints the numerical errors against PyTorch as a markdown table, and writes them for docs/parity.md.

  python scripts/measure_parity.py [--output=docs/results/parity.json]
  python scripts/measure_parity.py --systems [--output=docs/results/systems_parity.json]    # the worst of each system

Needs a checkout and the test extra (PyTorch on the CPU). The measurements are those of ``tests/test_parity.py`` and
``tests/test_systems.py``; the second takes a quarter of an hour.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from fada_jax import cli
from fada_jax.errors import UserError
from fada_jax.reporting import results

TESTS = Path(__file__).resolve().parents[1] / "tests"
COLUMNS = ("system", "cases", "losses", "PyTorch", "gradients", "PyTorch", "updates", "PyTorch", "all, in float64")


def of_systems() -> dict[str, Any]:
    """Largest errors of every system over its cases, as a table of docs/results."""
    import systems_cells

    cases, rows = systems_cells.cases(), []
    for system in dict.fromkeys(case.system for case in cases.values()):
        names = [name for name, case in cases.items() if case.system == system]
        single = [row for name in names for row in systems_cells.measure(cases[name])]
        cells: list[Any] = [system, len(names)]
        for kind in (": loss", "gradient", "update"):
            worst = max((row for row in single if kind in row.name), key=lambda row: row.ours)
            cells += [float(f"{worst.ours:.1e}"), float(f"{worst.torch32:.1e}")]
        # Their float64 is that of the whole process.
        command = [sys.executable, str(TESTS / "systems_float64.py"), *names]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        cells.append(float(f"{max(row['ours'] for row in json.loads(printed.splitlines()[-1])):.1e}"))
        rows.append(cells)
        print(*cells, flush=True)
    return {"columns": COLUMNS, "formats": ["", "d", *[".0e"] * 7], "rows": rows}


def of_networks() -> list[dict[str, Any]]:
    """Every quantity of ``tests/parity.py``."""
    import parity

    rows = list(parity.measure_all())
    print(parity.markdown(rows))
    return [
        {
            "name": row.name,
            "ours": float(f"{row.ours:.1e}"),
            "torch32": float(f"{row.torch32:.1e}"),
            "ratio": round(row.ours / row.torch32, 2) if row.torch32 else float("inf"),
            "limit": row.limit,
        }
        for row in rows
    ]


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only")
    sys.path.insert(0, str(TESTS))
    try:
        import parity  # noqa: F401
        import torch
    except ImportError as error:
        raise UserError(f"measuring needs a checkout with its test extra: {error}") from error
    options = flags.FLAGS
    results.check(options.output, "--output")
    torch.set_num_threads(1)
    measured = {"table": of_systems()} if options.systems else {"rows": of_networks()}
    if not options.output:
        return
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch"))
    chosen = "--systems " if options.systems else ""
    head = {
        "command": f"python scripts/measure_parity.py {chosen}--output={options.output}",
        "date": datetime.date.today().isoformat(),
        "machine": f"CPU, {', '.join(versions)}",
    }
    results.write(options.output, {**head, **measured})
    print(f"written: {options.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "JSON file of the rows; empty: none.")
    flags.DEFINE_bool("systems", False, "Measure the systems beside FADA.")
    cli.run(main)
