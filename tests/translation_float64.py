"""Prints, as JSON rows, ``translation_parity.measure`` in float64: ``translation_float64.py CASE...``."""

from __future__ import annotations

import sys

import as_float64
import translation_parity

if __name__ == "__main__":
    as_float64.print_rows(row for name in sys.argv[1:] for row in translation_parity.measure(name, "float64"))
