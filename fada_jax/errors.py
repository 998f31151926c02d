"""The error a user can cause and mend: commands print its message on one line and exit with status 1."""

from __future__ import annotations

import errno
import os

_STORAGE = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO))


class UserError(Exception):
    """Wrong path, key, file or combination; the message names it and says what to do."""


def storage_fault(error: BaseException) -> str:
    """'No space left on device' or the like, where the error of whatever library says so; else ''."""
    return next((fault for fault in _STORAGE if fault in str(error)), "")
