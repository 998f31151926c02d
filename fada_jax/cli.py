"""How every command starts: parses absl flags, answers ``--help``, and turns user errors into one line and status 1."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import flags, logging

from fada_jax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Runs ``main(arguments)``, with the positional arguments that are no flags, and exits.

    Exit status: 0 when ``main`` returns or help was asked for, 2 for a wrong flag, 1 for a user error. Both errors
    print one line on stderr; anything else is a defect and keeps its traceback.
    """
    logging.set_verbosity(logging.WARNING)
    if any(argument in ("--help", "-h", "-help", "--helpshort", "--helpfull") for argument in sys.argv[1:]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        print("\nFlags:" + flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        arguments = flags.FLAGS(sys.argv)[1:]
    except UserError as error:
        _fail(error, 1)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # A config file and its overrides are evaluated while flags are parsed, so their mistakes surface here.
        _fail(error, 2)
    try:
        main(arguments)
    except UserError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _fail(error: BaseException, status: int) -> None:
    message = " ".join(str(error).strip("'\"").split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
