"""The project's commands as users run them, from the repository root."""

import contextlib
import functools
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import absl.logging  # noqa: F401  (its flags are no command's own)
import jax
from absl import flags

from fada_jax import endings
from fada_jax.errors import EXTRAS

ROOT = Path(__file__).parents[1]
# A test's few steps compile for longer than they run.
QUICK_COMPILE = "--xla_backend_optimization_level=0"
# Code after which no library of an extra can be imported, as after a base install.
WITHOUT_EXTRAS = f"""
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        absent = name in {[*sum(EXTRAS.values(), ("cykooz_resizer",))]}
        return None if absent else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it runs in the background ignore Ctrl-C, and that is inherited; tests send it on purpose.
    signal.signal(signal.SIGINT, signal.default_int_handler)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def environment(optimised=False):
    """Variables of a command: this checkout, on the CPU, compiled in half the time but for ``optimised``."""
    xla_flags = os.environ.get("XLA_FLAGS", "") + ("" if optimised else f" {QUICK_COMPILE}")
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}


def command(*arguments, expect=0, optimised=False):
    """Runs ``python *arguments``; returns its output, or its one line of error where it must fail with ``expect``."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env=environment(optimised)
    )
    assert result.returncode == expect, result.stdout[-2000:] + result.stderr[-4000:]
    return one_error(result.stderr) if expect else result.stdout


def on_devices(count, module, call):
    """What ``call``, in terms of what a test module defines, returns on ``count`` forced devices, by way of JSON."""
    variables = environment()
    variables["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={count}"
    result = subprocess.run(
        [sys.executable, "-c", f"import json; from {module} import *; print(json.dumps({call}))"],
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT / "tests",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def command_here(*arguments):
    """``command`` without a process of its own, for commands that end before they compute anything.

    Returns:
      exit status, stdout and stderr.
    """
    before, paths = set(flags.FLAGS), list(sys.path)
    handlers = {number: signal.getsignal(number) for number in endings.SIGNALS}
    hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook, logging.root.manager.disable)
    argv, sys.argv = sys.argv, [str(arguments[0]), *map(str, arguments[1:])]
    status, output, errors = 0, io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), contextlib.chdir(ROOT):
            if sys.argv[0] == "-m":
                sys.argv = sys.argv[1:]
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv, sys.path[:] = argv, paths
        # As the process of the tests had them.
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.excepthook, sys.unraisablehook, threading.excepthook, logging.root.manager.disable = hooks
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return status, output.getvalue(), errors.getvalue()


def one_error(errors):
    """The one line of error that a command printed."""
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in errors, errors
    return lines[0]
