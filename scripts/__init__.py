"""Command-line programs: `python scripts/NAME.py`, or `fada-jax NAME` where the package is installed."""
