"""Imported first by commands and by nothing else: from here on a signal finds its handler, also during imports."""

import contextlib
import logging
import os
import sys

from fada_jax import endings

# It announces where its cache is, in a container.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

# One of several processes says in one line that another has ended (fada_jax.peers): libraries read this once, when they
# are loaded, and would add a stack trace.
_several = any(argument.lstrip("-").startswith(("coordinator", "distributed")) for argument in sys.argv[1:])
if _several and not endings.debugging():
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "4"

with contextlib.suppress(ValueError):  # Not in the main thread: whoever imports a command is none.
    endings.obey_signals()
