"""What is asked of an object store: every request is tried again, with longer and longer pauses, until it is hopeless.

The libraries are gcsfs and s3fs, through fsspec: the same that ``etils.epath``, and with it orbax, use. Errors that are
final are OSErrors of the kinds that a file system raises, so that whoever reads or writes need not know where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from fada_jax.errors import UserError

T = TypeVar("T")
# Scheme -> the library that serves it, fsspec's name of it, and the extra of setup.cfg that brings it.
SCHEMES = {"gs": ("gcsfs", "gcs", "gcs"), "s3": ("s3fs", "s3", "s3")}
# Seconds that a request is tried for.
PATIENCE = "FADA_JAX_STORAGE_PATIENCE"
_PATIENCE = 300.0
_PAUSE, _LONGEST_PAUSE = 0.2, 16.0
# Seconds without an answer after which people are told.
_WORTH_SAYING = 15.0
# A request that says nothing for so long has failed.
_SILENCE = 120
# Answers that the same request would get again.
_HOPELESS = (400, 401, 405, 409, 411, 413, 414, 501)
# epath, and with it orbax, would take TensorFlow's clients, which know neither s3:// nor an emulator. It looks once.
os.environ.setdefault("EPATH_USE_TF", "0")
# Errors of code, not of a store.
_DEFECTS = (TypeError, AttributeError, NameError, LookupError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Info:
    """What a store says of an object.

    Attributes:
      size: in bytes.
      version: differs after every write: the generation, or the ETag.
    """

    size: int
    version: str


def system(path: str) -> Any:
    """The fsspec file system of an object's path.

    Raises:
      UserError: its library is not installed.
    """
    return _system(path.partition("://")[0])


@functools.cache
def _system(scheme: str) -> Any:
    library, name, extra = SCHEMES[scheme]
    prepare()
    try:
        client = fsspec.get_filesystem_class(name)
        if not issubclass(client, _WholeObjects):
            client = type(client.__name__, (_WholeObjects, client), {})
            for alias in (name, scheme):
                fsspec.register_implementation(alias, client, clobber=True)
        return fsspec.filesystem(name)
    except ImportError as error:
        raise UserError(f"{scheme}:// needs {library}: pip install 'fada-jax[{extra}]'") from error


class _WholeObjects:
    """A file system whose files are read and written whole, each by requests that are tried again.

    Its own files are what ``etils.epath``, and with it orbax, would use. In s3fs 2026.9 a connection that is cut in the
    middle of an answer gives such a file fewer bytes, and nothing says so (tests/test_storage.py).
    """

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            return io.BytesIO(_tried(path, lambda: bytes(self.cat_file(path))))  # type: ignore[attr-defined]
        if mode == "wb":
            return _Written(lambda data: _tried(path, lambda: self.pipe_file(path, data)))  # type: ignore[attr-defined]
        return super()._open(path, mode, **options)  # type: ignore[misc]


class _Written(io.BytesIO):
    """A file that is written when it is closed."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._write = write

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._write(data)


@functools.cache
def prepare() -> None:
    """Has the libraries do what is right for runs that several processes watch; before any of them is used."""
    # Another process may have written since a listing was kept.
    options: dict[str, dict[str, Any]] = {
        "gcs": {"use_listings_cache": False, "requests_timeout": _SILENCE},
        "s3": {"use_listings_cache": False, "config_kwargs": {"read_timeout": _SILENCE, "connect_timeout": 20}},
    }
    # They would log every failed try with its traceback.
    for name in ("gcsfs", "s3fs", "aiobotocore", "botocore", "fsspec", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name, values in options.items():
        fsspec.config.conf[name] = {**values, **fsspec.config.conf.get(name, {})}
    # gcsfs would look for appendable buckets at every start, with a client that needs credentials of its own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # The same place for tensorstore, which orbax stores arrays with.
    if host := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", host)


def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
    """An object's bytes, or those from ``start`` to ``end``; fewer where it ends before."""
    store = system(path)
    return _tried(path, lambda: bytes(store.cat_file(path, start=start, end=end)))


def write(path: str, data: bytes) -> None:
    """Writes an object, whole or not at all."""
    store = system(path)
    _tried(path, lambda: store.pipe_file(path, data))


def upload(local: Path, path: str) -> None:
    """Writes an object from a file, whole or not at all."""
    store = system(path)
    _tried(path, lambda: store.put_file(str(local), path))


def download(path: str, local: Path) -> None:
    """Reads an object into a file."""
    store = system(path)
    _tried(path, lambda: store.get_file(path, str(local)))


def info(path: str) -> Info | None:
    """What the store says of an object; None where there is none, or a folder."""
    store = system(path)
    try:
        values = _tried(path, lambda: store.info(path))
    except FileNotFoundError:
        return None
    if values["type"] != "file":
        return None
    return Info(int(values["size"]), str(values.get("generation") or values.get("ETag") or ""))


def tree(folder: str) -> dict[str, int]:
    """Bytes of every object below a folder, by its path from there, in order; {} where there is none."""
    store, base = system(folder), folder.partition("://")[2].rstrip("/") + "/"

    def listing() -> dict[str, int]:
        found = store.find(folder, detail=True)
        # Some tools mark an empty folder by an object of no bytes whose name ends in a slash.
        names = sorted(name for name in found if name.startswith(base) and not name.endswith("/"))
        return {name[len(base) :]: int(found[name]["size"]) for name in names}

    try:
        return _tried(folder, listing)
    except FileNotFoundError:
        return {}


def children(folder: str) -> dict[str, bool]:
    """What lies in a folder itself, by name: whether it is a folder."""
    store, base = system(folder), folder.partition("://")[2].rstrip("/")
    try:
        found = _tried(folder, lambda: store.ls(folder, detail=True))
    except FileNotFoundError:
        return {}
    entries = ((entry["name"].rstrip("/"), entry["type"] == "directory") for entry in found)
    return dict(
        sorted((name[len(base) + 1 :], is_folder) for name, is_folder in entries if name.startswith(base + "/"))
    )


def remove(path: str) -> None:
    """Removes an object; nothing where there is none."""
    store = system(path)
    with contextlib.suppress(FileNotFoundError):
        _tried(path, lambda: store.rm_file(path))


def copy(path: str, other: str) -> None:
    """Copies an object within the store."""
    store = system(path)
    _tried(path, lambda: store.cp_file(path, other))


def write_if(path: str, data: bytes, version: str) -> str | None:
    """Writes an object if it is still the one of ``version``; '' for none.

    ``data`` must never have been written there before: by it a write is known whose answer was lost.

    Returns:
      the new version; None where it is another, and nothing was written.
    """
    store = system(path)
    bucket, _, key = path.partition("://")[2].partition("/")
    conditional = _write_if_gs if path.startswith("gs://") else _write_if_s3
    try:
        return _tried(path, lambda: conditional(store, bucket, key, data, version))
    except (FileExistsError, FileNotFoundError):
        now = info(path)
        return now.version if now and read(path) == data else None


def _write_if_gs(store: Any, bucket: str, key: str, data: bytes, version: str) -> str:
    answer = store.call(
        "POST",
        f"{store._location}/upload/storage/v1/b/{bucket}/o",
        uploadType="media",
        name=key,
        ifGenerationMatch=version or "0",
        headers={"Content-Type": "application/octet-stream"},
        data=data,
        json_out=True,
    )
    return str(answer["generation"])


def _write_if_s3(store: Any, bucket: str, key: str, data: bytes, version: str) -> str:
    condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
    return str(store.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)["ETag"])


def _tried(path: str, request: Callable[[], T]) -> T:
    """The answer to a request.

    Raises:
      OSError: naming the object: what makes it hopeless, or that there was no answer for so long.
    """
    began, patience, said = time.monotonic(), float(os.environ.get(PATIENCE, _PATIENCE)), False
    for pause in _pauses():
        try:
            return request()
        except _DEFECTS:
            raise
        except Exception as error:
            if final := _final(error, path):
                raise final from error
            waited = time.monotonic() - began
            if waited + pause > patience:
                reason = f"the store gave no answer for {waited:.0f} seconds ({_one_line(error)})"
                raise OSError(errno.EIO, reason, path) from error
            if waited > _WORTH_SAYING and not said:
                said = True
                left = f"trying for {patience - waited:.0f} seconds more"
                print(f"note: {path}: the store gives no answer ({_one_line(error)}), {left}", file=sys.stderr)
        time.sleep(pause)
    raise AssertionError("pauses are endless")


def _pauses() -> Iterator[float]:
    pause = _PAUSE
    while True:
        # Processes that failed together do not come back together.
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _final(error: Exception, path: str) -> OSError | None:
    """The error to end with where another try would end the same; None where it may not."""
    text = _one_line(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object", path)
    # s3fs has no type of its own for a condition that does not hold.
    if isinstance(error, FileExistsError) or "pre-conditions you specified did not hold" in text:
        return FileExistsError(errno.EEXIST, "there is another object", path)
    if isinstance(error, PermissionError) or "Forbidden" in text:
        return PermissionError(errno.EACCES, f"the store refuses access ({text})", path)
    if "redentials" in text and ("ould not" in text or "nable" in text or "not found" in text):
        return PermissionError(errno.EACCES, f"no credentials for the store ({text})", path)
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return type(error)(error.errno or errno.EISDIR, "a folder, not an object", path)
    code = getattr(error, "code", None)
    if (str(code).isdecimal() and int(str(code)) in _HOPELESS) or _is_refusal(error):
        return OSError(errno.EIO, f"the store refuses ({text})", path)
    return None


def _is_refusal(error: Exception) -> bool:
    """Whether a library says that a request is wrong. An answer that was cut is no JSON, and no refusal."""
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL
    return isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
