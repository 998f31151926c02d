"""The error a user can cause and mend: commands print its message on one line and exit with status 1."""

from __future__ import annotations

import errno
import os

# Libraries that the base install leaves out, by the extra of setup.cfg that brings them.
EXTRAS = {
    "train": ("tensorboardX", "tensorflow", "tensorflow_datasets"),
    "report": ("jinja2", "matplotlib"),
    "systems": ("skimage", "sklearn"),
    "torch": ("safetensors", "torch"),
    "beam": ("apache_beam",),
    "wandb": ("wandb",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
}
_STORAGE = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG))


class UserError(Exception):
    """Wrong path, key, file or combination; the message names it and says what to do."""


class Busy(UserError):
    """Another process is at work where this one wants to be; later it may not be."""


def missing_extra(error: BaseException) -> str:
    """'jinja2 is not installed: pip install ...', where an import failed for want of an extra; else ''."""
    library = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    extra = next((extra for extra, libraries in EXTRAS.items() if library in libraries), "")
    return f"{library} is not installed: pip install 'fada-jax[{extra}]'" if extra else ""


def storage_fault(error: BaseException) -> str:
    """'No space left on device' or the like, where the error of whatever library says so; else ''."""
    return next((fault for fault in _STORAGE if fault in str(error)), "")
