"""Imported first by commands and by nothing else: from here on a signal finds its handler, also during imports."""

import contextlib
import logging

from fada_jax import endings

# It announces where its cache is, in a container.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

with contextlib.suppress(ValueError):  # Not in the main thread: whoever imports a command is none.
    endings.obey_signals()
