"""The project's commands as users run them, from the repository root."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment():
    """Variables of a command: this checkout, on the CPU."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def command(*arguments, expect=0):
    """Runs ``python *arguments``; returns its output, or its one line of error where it must fail with ``expect``."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert result.returncode == expect, result.stdout[-2000:] + result.stderr[-4000:]
    if expect:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
        return errors[0]
    return result.stdout
