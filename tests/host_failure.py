"""A command whose process VICTIM ends at a place of its work, as a host does that dies or that alone meets an error.

  python tests/host_failure.py PLACE HOW VICTIM MODULE [flags], with HOST_FAILURE_AT, a file that gets the time

PLACE is one of ``PLACES``; HOW is kill (SIGKILL), refusal (an error of the user's) or defect (any other).
"""

import functools
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

PLACES = ("joining", "compiling", "training", "evaluation", "labelling", "prediction")


def fail(how):
    Path(os.environ["HOST_FAILURE_AT"]).write_text(str(time.time()))
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("this host's disk is full") if how == "refusal" else RuntimeError("a defect")


def failing(how, function, calls=1):
    """``function``, which fails in the place of its call of that number."""
    left = [calls]

    @functools.wraps(function)
    def run(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            fail(how)
        return function(*arguments, **options)

    return run


def arrange(place, how):
    """Sees to it that this process fails."""
    if place == "joining":
        multihost_utils.sync_global_devices = failing(how, multihost_utils.sync_global_devices)
    elif place == "compiling" and how == "kill":
        lower = program.jit_step

        def jit_step(*arguments):
            threading.Timer(1, fail, [how]).start()
            return lower(*arguments)

        program.jit_step = jit_step
    elif place == "compiling":
        distributed.put_batch = failing(how, distributed.put_batch)
    elif place == "prediction":
        predictions.Outputs.write_all = failing(how, predictions.Outputs.write_all)
    else:
        distributed.put_batch = failing(how, distributed.put_batch, 5 if place == "training" else 1)


if __name__ == "__main__":
    place, how, victim, module = sys.argv[1:5]
    sys.argv = [module, *sys.argv[5:]]
    import fada_jax.as_command  # noqa: F401  (before JAX, as in every command)

    if f"--process_id={victim}" in sys.argv:
        from jax.experimental import multihost_utils

        from fada_jax import distributed
        from fada_jax.errors import UserError
        from fada_jax.evaluation import predictions
        from fada_jax.stages import program

        arrange(place, how)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
