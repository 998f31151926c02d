"""How every command runs: parses absl flags, answers ``--help``, and turns user errors into one line and status 1."""

from __future__ import annotations

# Before the imports below, which take a second: a signal must find its handler.
from fada_jax import as_command  # noqa: F401

# isort: split
import contextlib
import ctypes
import errno
import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from absl import flags, logging
from ml_collections import config_flags

from fada_jax import config_arguments, distributed, endings, files, peers
from fada_jax.errors import UserError, storage_fault
from fada_jax.models import DTYPES
from fada_jax.storage import caches

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Keys of a config that record the arguments that it was made with.
_ARGUMENTS = {"stage", "method", "size", "task"}
# Faults of the machine. Other errors of the system come from a wrong path of ours, and are defects.
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENAMETOOLONG),
}


class _WrongFlag(Exception):
    """A flag or a config cannot be read; status 2."""


def run(main: Callable[[list[str]], None]) -> None:
    """Runs ``main(arguments)``, with the positional arguments that are no flags, and exits.

    Exit status: 0 when ``main`` returns or help was asked for, 2 for a wrong flag, 1 for a user error, a full or broken
    disk, a standard output that cannot be written or too little memory, 130, 143 or 129 for SIGINT, SIGTERM or SIGHUP.
    Errors print one line on stderr; anything else is a defect and keeps its traceback. ``--debug`` or FADA_JAX_DEBUG=1
    shows the traceback of every error.
    """
    debug = endings.debugging()
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    logging.set_verbosity(logging.FATAL)  # Errors are raised; tracebacks that libraries log would bury them.
    _read_utf8()
    endings.begin()
    _keep_compiled_steps()
    _keep_freed_memory()
    try:
        if any(argument in ("--help", "-h", "-help", "--helpshort", "--helpfull") for argument in sys.argv[1:]):
            _print_help()
        else:
            main(_arguments())
        if sys.stdout:
            sys.stdout.flush()
        peers.leave(0)
    except SystemExit:
        raise
    except BaseException as error:
        answer = _answer(error)
        if not answer:
            if peers.together():
                traceback.print_exc()
                peers.leave(1)
            raise
        if debug:
            traceback.print_exc()
        else:
            traceback.clear_frames(error.__traceback__)
            endings.silence()
        endings.say(answer[1])
        peers.leave(answer[0], at_once=peers.broken(error))
        sys.exit(answer[0])
    finally:
        endings.ignore_signals()


def _read_utf8() -> None:
    """Starts anew in Python's UTF-8 mode where neither it nor the locale knows other characters than ASCII's.

    Names of files and classes have others, and each of them would fail at another place.
    """
    if sys.getfilesystemencoding() == "ascii" and sys.orig_argv:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _print_help() -> None:
    print(endings.description(sys.modules["__main__"]))
    print("\nFlags:" + flags.FLAGS.main_module_help())
    print("\n  --debug: Show the whole traceback of an error.")


def _arguments() -> list[str]:
    """Parses the flags and returns what is none.

    Raises:
      UserError, _WrongFlag: a mistake in them.
    """
    for argument in sys.argv[1:]:
        if argument.startswith("-") and re.search("[\ud800-\udfff]", argument):
            raise UserError(f"{argument}: no text in UTF-8")
    if "config" in flags.FLAGS:
        config_arguments.check(sys.argv[1:])
    try:
        arguments = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError, OSError) as error:
        # A config file and its overrides are evaluated while flags are parsed, so their mistakes surface here.
        raise _WrongFlag(_message(error)) from error
    _check_places(arguments)
    if "cache_dir" in flags.FLAGS:
        caches.configure(flags.FLAGS.cache_dir, flags.FLAGS.cache_gb)
    return arguments


def _answer(error: BaseException) -> tuple[int, str] | None:
    """Exit status and line of whatever ended a command; None for a defect."""
    fault = endings.output_error()
    if isinstance(error, UserError):
        # A run that saved before it ended says so.
        return 1, f"{fault}; {_message(error)}" if fault else f"error: {_message(error)}"
    if fault or endings.state.received or isinstance(error, KeyboardInterrupt):
        # Libraries turn a signal into errors of their own.
        return endings.interrupted()
    if isinstance(error, _WrongFlag):
        return 2, f"error: {error}"
    if peers.broken(error):
        return 1, f"error: {peers.ENDED}"
    reason = _of_the_machine(error)
    return (1, f"error: {reason}") if reason else None


def _check_places(arguments: list[str]) -> None:
    """Refuses paths in arguments and flags that would become local folders of another name, or that nothing serves.

    Raises:
      UserError: naming the flag.
    """
    for argument in arguments:
        files.place(argument)
    for name in flags.FLAGS:
        if isinstance(value := flags.FLAGS[name].value, str):
            files.place(value, f"--{name}")


def _of_the_machine(error: BaseException) -> str:
    """What to tell where storage or memory failed, in whatever library noticed; '' for a defect."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _MACHINE:
        return ": ".join(filter(None, (error.filename and str(error.filename), error.strerror or text)))
    if fault := storage_fault(error):
        return f"{fault}: {text[:300]}"
    if isinstance(error, MemoryError):
        return f"out of memory: use fewer workers, smaller batches or smaller images{text and f' ({text[:200]})'}"
    if isinstance(error, jax.errors.JaxRuntimeError) and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text):
        return (
            "the device has too little memory: lower config.batch_size or config.eval_batch_size, or set "
            f"config.accumulate_steps or config.model.remat ({text[:200]})"
        )
    return ""


def _message(error: BaseException) -> str:
    """The message of an error on one line."""
    # ml_collections wraps errors in errors and passes whole tracebacks as text, whose last line is the message.
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    message = str(error)
    if isinstance(error, KeyError) and error.args:
        # ml_collections names the key alone where none is like it.
        message = (
            f"{error.args[0]}: the config has no such key" if " " not in str(error.args[0]) else str(error.args[0])
        )
    first, _, trace = message.partition("Traceback (most recent call last):")
    message = first + trace.strip().splitlines()[-1] if trace else message
    return " ".join(message.split())


def _keep_compiled_steps() -> None:
    """Compiled functions are kept between runs: in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder.

    Where the user has no such folder, as in containers, nothing is kept.
    """
    # A full disk costs the next run some seconds, and no more.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: a user without an entry in the system's list.
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fada_jax"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))


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

    See ``config_arguments.normalised`` for the forms that they may have.
    """
    sys.argv[1:] = config_arguments.normalised(sys.argv[1:])
    config_flags.DEFINE_config_file("config", None, "Path of the config file, with its arguments after a colon.")


def size(flag: str, text: str, least: int = 1) -> tuple[int, int]:
    """(width, height) in pixels of a flag's '1280x720'.

    Raises:
      UserError: not of that form, or less than ``least`` pixels wide or high; names the flag.
    """
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)  # What is longer is no size, and int() may refuse it.
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


def define_cache() -> None:
    """Defines where records of buckets are kept between runs; ``run`` obeys it."""
    flags.DEFINE_string("cache_dir", "", "Local folder that keeps records read from gs:// and s3://; default: none.")
    flags.DEFINE_float("cache_gb", 100.0, "GB of records that it holds at most.", lower_bound=0.0)


def define_processes() -> None:
    """Defines the flags of how a run uses its hosts and devices; ``join_processes`` obeys them."""
    flags.DEFINE_bool(
        "deterministic", False, "On GPUs too, the same run gives the same bits; slower. CPUs need no flag for that."
    )
    flags.DEFINE_bool("distributed", False, "One of several processes; a TPU pod, Slurm or Open MPI is detected.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where no cluster is detected.")
    flags.DEFINE_integer("num_processes", 0, "Processes in all, with --coordinator.", lower_bound=0)
    flags.DEFINE_integer("process_id", -1, "Number of this process, from 0, with --coordinator.", lower_bound=-1)
    flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)


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
        timeout=options.join_timeout,
        debug=endings.debugging(),
        log=functools.partial(print, file=sys.stderr),
    )
    if jax.process_index():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # Process 0 speaks for all.


def config() -> tuple[ConfigDict, str, dict]:
    """The config of ``--config``, the path with arguments that names it, and its overrides.

    Raises:
      UserError: no config named, or the file is not there.
    """
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
