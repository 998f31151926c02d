"""Prints, as JSON rows, ``systems_cells.measure`` with all of ours in float64: ``systems_float64.py NAME...``."""

from __future__ import annotations

import sys

import as_float64
import systems_cells

from fada_jax.training import constraints

if __name__ == "__main__":
    # The error that ends the search for the distribution within bounds is one of float32.
    constraints._TOLERANCE = 1e-15
    cases = systems_cells.cases()
    as_float64.print_rows(row for name in sys.argv[1:] for row in systems_cells.measure(cases[name], "float64"))
