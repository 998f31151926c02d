"""Runs many commands in forks of one process that has imported what they share: standard input and output are JSON.

Input: a list of commands, each a list of the module and its arguments. Output: (status, stdout, stderr) of each.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import fada_jax.export
import fada_jax.train  # noqa: F401  (imported once, for all forks)

ROOT = Path(__file__).parents[1]


def run(module, arguments):
    """Exit status and output of ``python -m module *arguments``."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = 0
            try:
                path = ROOT / ("fada_jax/__main__.py" if module == "fada_jax" else f"{module.replace('.', '/')}.py")
                sys.argv = [str(path), *arguments]
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else int(left.code is not None)
            except BaseException:
                traceback.print_exc()
                status = 70
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return status, *texts


if __name__ == "__main__":
    print(json.dumps([run(module, arguments) for module, *arguments in json.load(sys.stdin)]))
