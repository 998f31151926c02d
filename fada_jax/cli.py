"""How every command starts: parses absl flags, answers ``--help``, and turns user errors into one line and status 1."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax
from absl import flags, logging

from fada_jax import distributed, files
from fada_jax.errors import UserError, missing_extra, storage_fault
from fada_jax.models import DTYPES

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Keys of a config that record the arguments that it was made with.
_ARGUMENTS = {"stage", "method", "size", "task"}


def _name_missing_extra(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line instead of a traceback where a library of an extra is missing, whoever imports it and when."""
    if reason := missing_extra(error):
        print(f"error: {reason}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# Commands import this module before any that needs an extra, and what they need before they call ``run``.
sys.excepthook = _name_missing_extra


def run(main: Callable[[list[str]], None]) -> None:
    """Runs ``main(arguments)``, with the positional arguments that are no flags, and exits.

    Exit status: 0 when ``main`` returns or help was asked for, 2 for a wrong flag, 1 for a user error, a full or broken
    disk or too little memory, 130 or 143 for SIGINT or SIGTERM. Errors print one line on stderr; anything else is a
    defect and keeps its traceback. ``--debug`` or FADA_JAX_DEBUG=1 shows the traceback of every error.
    """
    debug = "--debug" in sys.argv or os.environ.get("FADA_JAX_DEBUG") == "1"
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    logging.set_verbosity(logging.FATAL)  # Errors are raised; tracebacks that libraries log would bury them.
    signal.signal(signal.SIGTERM, _interrupt)
    _keep_compiled_steps()
    _keep_freed_memory()
    if any(argument in ("--help", "-h", "-help", "--helpshort", "--helpfull") for argument in sys.argv[1:]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        print("\nFlags:" + flags.FLAGS.main_module_help())
        print("\n  --debug: Show the whole traceback of an error.")
        sys.exit(0)
    try:
        arguments = flags.FLAGS(sys.argv)[1:]
        _refuse_remote(arguments)
    except UserError as error:
        _fail(error, 1, debug)
    except (flags.Error, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError, OSError) as error:
        # A config file and its overrides are evaluated while flags are parsed, so their mistakes surface here.
        _fail(error, 2, debug)
    try:
        main(arguments)
    except UserError as error:
        _fail(error, 1, debug)
    except Exception as error:
        reason = _of_the_machine(error)
        if not reason:
            raise
        _fail(reason, 1, debug)
    except KeyboardInterrupt as error:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(128 + (error.args[0] if error.args else signal.SIGINT))


def _refuse_remote(arguments: list[str]) -> None:
    """Refuses paths of object storage in arguments and flags, which would become local folders of that name.

    Raises:
      UserError: naming the flag.
    """
    for argument in arguments:
        files.local(argument)
    for name in flags.FLAGS:
        if isinstance(value := flags.FLAGS[name].value, str):
            files.local(value, f"--{name}")


def _of_the_machine(error: Exception) -> str:
    """What to tell where storage or memory failed, in whatever library noticed; '' for a defect."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        # A wrong path of the user's is a UserError; what is left is the disk.
        return ": ".join(filter(None, (error.filename and str(error.filename), error.strerror or text)))
    if fault := storage_fault(error):
        return f"{fault}: {text[:300]}"
    if isinstance(error, MemoryError):
        return "out of memory: use fewer workers or smaller images"
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return (
            "the device has too little memory: lower config.batch_size or config.eval_batch_size, or set "
            f"config.accumulate_steps or config.model.remat ({text[:200]})"
        )
    return ""


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


def _keep_compiled_steps() -> None:
    """Compiled functions are kept between runs: in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "fada_jax"))


def _keep_freed_memory() -> None:
    """Freed memory stays with the process, where its C library is glibc.

    XLA allocates a step's temporaries anew for every step, and glibc returns large blocks to the system at once: on
    CPUs a third of a step's time went into the page faults of getting them back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_max = -1, -4  # Constants of malloc.h.
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def define_config() -> None:
    """Defines ``--config``: a config file with its arguments after a colon, and ``--config.key=value`` overrides.

    Overrides may stand before ``--config`` on the command line; ml_collections alone refuses that. ``configs/NAME.py``
    means the installed one where the working directory has none.
    """
    from ml_collections import config_flags

    sys.argv[1:] = [_installed_config(argument) for argument in sys.argv[1:]]
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: not argument.startswith("--config="))
    config_flags.DEFINE_config_file("config", None, "Path of the config file, with its arguments after a colon.")


def _installed_config(argument: str) -> str:
    flag, _, path = argument.partition("=")
    file = path.partition(":")[0]
    if flag != "--config" or not file.startswith("configs/") or Path(file).exists():
        return argument
    installed = Path(__file__).with_name("configs").parent / path
    return f"{flag}={installed}" if Path(str(installed).partition(":")[0]).is_file() else argument


def size(flag: str, text: str, least: int = 1) -> tuple[int, int]:
    """(width, height) in pixels of a flag's '1280x720'.

    Raises:
      UserError: not of that form, or less than ``least`` pixels wide or high; names the flag.
    """
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", text)
    if not match or min(int(match[1]), int(match[2])) < least:
        limit = f" of at least {least} pixels" if least > 1 else ""
        raise UserError(f"--{flag}={text}: must be WIDTHxHEIGHT{limit}, for instance 1280x720")
    return int(match[1]), int(match[2])


def define_dtype() -> None:
    """Defines the compute type of a stored model."""
    flags.DEFINE_enum(
        "dtype",
        "auto",
        DTYPES,
        "Compute type; auto: what the model was trained with on accelerators, float32 on CPUs.",
    )


def define_processes() -> None:
    """Defines the flags of how a run uses its hosts and devices; ``join_processes`` obeys them."""
    flags.DEFINE_bool(
        "deterministic", False, "On GPUs too, the same run gives the same bits; slower. CPUs need no flag for that."
    )
    flags.DEFINE_bool("distributed", False, "One of several processes; a TPU pod, Slurm or Open MPI is detected.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where no cluster is detected.")
    flags.DEFINE_integer("num_processes", 0, "Processes in all, with --coordinator.", lower_bound=0)
    flags.DEFINE_integer("process_id", -1, "Number of this process, from 0, with --coordinator.", lower_bound=-1)


def join_processes() -> None:
    """Joins the other processes of the run, before anything touches a device.

    Raises:
      UserError: the flags do not fit together, or the others cannot be reached.
    """
    options = flags.FLAGS
    if not options.coordinator and (options.num_processes or options.process_id >= 0):
        raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT")
    if options.coordinator and not 0 <= options.process_id < options.num_processes:
        raise UserError(
            f"--process_id={options.process_id} must be from 0 to --num_processes={options.num_processes} - 1"
        )
    alone = not options.coordinator and not options.distributed
    distributed.join(
        options.coordinator,
        1 if alone else options.num_processes,
        options.process_id,
        deterministic=options.deterministic,
    )
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # Process 0 speaks for all.


def config() -> tuple[ConfigDict, str, dict]:
    """The config of ``--config``, the path with arguments that names it, and its overrides.

    Raises:
      UserError: no config named, or the file is not there.
    """
    from ml_collections import config_flags

    flag = flags.FLAGS["config"]
    path = config_flags.get_config_filename(flag) if flag.value is not None else ""
    if not path:
        raise UserError("--config is missing: the path of a config file, for instance configs/gta5_to_cityscapes.py")
    if not Path(path.partition(":")[0]).is_file():
        raise UserError(f"--config={path}: no such file")
    overrides = dict(config_flags.get_override_values(flag))
    for key in _ARGUMENTS & overrides.keys():
        # The file has chosen other keys by its arguments already.
        raise UserError(
            f"--config.{key}={overrides[key]}: {key} is an argument of the config file, from which other keys follow: "
            f"--config={path.partition(':')[0]}:{key}={overrides[key]}"
        )
    return flag.value, path, overrides


def _fail(error: BaseException | str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    # ml_collections wraps errors in errors and passes whole tracebacks as text, whose last line is the message.
    while isinstance(error, Exception) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    message = str(error)
    if isinstance(error, KeyError) and error.args:
        # ml_collections names the key alone where none is like it.
        message = (
            f"{error.args[0]}: the config has no such key" if " " not in str(error.args[0]) else str(error.args[0])
        )
    first, _, trace = message.partition("Traceback (most recent call last):")
    message = first + trace.strip().splitlines()[-1] if trace else message
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
