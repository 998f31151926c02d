"""Local copies of what lies in buckets: files and folders for a process, and records of data sets for all runs."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import os
import re
import sys
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fada_jax.errors import UserError
from fada_jax.storage import leases, objects
from fada_jax.storage.paths import is_object

# Requests of one process that wait for answers at the same time.
IN_FLIGHT = 32
_FOLDER = "fada_jax_records"
_ENTRY = re.compile(r"[\w.-]+-\d+-\d+-[0-9a-f]{8}")


@dataclasses.dataclass
class _State:
    """Of this process.

    Attributes:
      folder: ``--cache_dir``; None: records are not kept.
      limit: bytes of records that it may hold.
      records: opened when the first record is read.
    """

    folder: Path | None = None
    limit: int = 0
    records: Records | None = None


_state = _State()


def configure(folder: str, gigabytes: float) -> None:
    """Keeps records of buckets in ``folder``, so many GB of them at most; '' keeps none.

    Raises:
      UserError: it cannot be written.
    """
    _state.folder, _state.limit, _state.records = None, int(gigabytes * 1e9), None
    if not folder:
        return
    if folder.partition("://")[1]:
        raise UserError(f"--cache_dir={folder}: a local folder, which is faster than what it keeps")
    place = Path(folder).absolute()
    try:
        (place / _FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--cache_dir={folder} cannot be written: {error.strerror}") from error
    if not os.access(place / _FOLDER, os.W_OK | os.X_OK):
        raise UserError(f"--cache_dir={folder} cannot be written: no permission, or a read-only file system")
    _state.folder = place


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    where = _state.folder if _state.folder else None
    return tempfile.TemporaryDirectory(prefix="fada_jax_", dir=where)


def scratch() -> Path:
    """A new folder for this process alone, which is gone when it ends."""
    return Path(tempfile.mkdtemp(dir=_scratch().name))


def fetched(path: Path) -> Path:
    """A local file or folder with what ``path`` holds now; a local path itself.

    Raises:
      OSError: the store does not give it.
    """
    if not is_object(path):
        return path
    if found := objects.info(str(path)):
        return _fetched_file(str(path), found.version)
    folder = scratch() / path.name
    names = objects.tree(str(path))
    if not names:
        raise FileNotFoundError(2, "no such object", str(path))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    in_parallel(lambda name: objects.download(f"{path}/{name}", folder / name), names)
    return folder


@functools.lru_cache(64)
def _fetched_file(path: str, version: str) -> Path:
    local = scratch() / path.rpartition("/")[2]
    objects.download(path, local)
    return local


@functools.lru_cache(256)
def probe(folder: str) -> None:
    """Writes an object into a folder of a bucket, and removes it.

    Raises:
      OSError: there is no such bucket, or it cannot be written.
    """
    path = f"{folder}/.{uuid.uuid4().hex}.fada_jax"
    try:
        objects.write(path, b"")
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such bucket", folder) from error
    objects.remove(path)


def publish(local: Path, path: Path) -> None:
    """Writes an object from a local file.

    Raises:
      UserError: a place that this process held is another run's.
      OSError: the store does not take it.
    """
    leases.check()
    objects.upload(local, str(path))


def uploaded(local: Path, folder: Path) -> None:
    """Writes all files of a local folder into one of a bucket."""
    leases.check()
    names = sorted(str(file.relative_to(local)) for file in local.rglob("*") if file.is_file())
    in_parallel(lambda name: objects.upload(local / name, f"{folder}/{name}"), names)


def mirrored(folder: Path) -> tuple[Path, Callable[[], None]]:
    """Where libraries write that append to files, and what has that written to ``folder``; a local folder is both."""
    if not is_object(folder):
        return folder, lambda: None
    mirror = _Mirror(folder)
    return mirror.local, mirror.sync


class _Mirror:
    """A local folder whose files go to one in a bucket now and then."""

    def __init__(self, folder: Path) -> None:
        self.local, self._folder, self._sent = scratch(), folder, {}  # type: tuple[Path, Path, dict[str, tuple[int, int]]]

    def sync(self) -> None:
        """Writes what has changed."""
        leases.check()
        for file in sorted(self.local.rglob("*")):
            if not file.is_file():
                continue
            name, status = str(file.relative_to(self.local)), file.stat()
            if self._sent.get(name) != (status.st_size, status.st_mtime_ns):
                objects.upload(file, f"{self._folder}/{name}")
                self._sent[name] = (status.st_size, status.st_mtime_ns)


def in_parallel(call: Callable[[str], object], names: Iterable[str]) -> None:
    """``call`` of each name, many at a time; the first error is raised when all have ended."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for result in [pool.submit(call, name) for name in names]:
            result.result()


def record(shard: Path, offset: int, length: int, crc: int) -> bytes:
    """Bytes of a record in a bucket: of the cache, or else asked for and kept there.

    Args:
      shard: its file, an ``ObjectPath``.
      offset, length, crc: of its payload; what is kept is compared with ``crc``.

    Returns:
      what the store holds there, be it another payload.
    """
    kept = _opened()
    name = f"{shard.name}-{offset}-{length}-{crc:08x}"
    if kept and (data := kept.get(shard.parent, name)) is not None:
        if zlib.crc32(data) == crc:
            return data
        kept.drop(shard.parent, name)
    data = objects.read(str(shard), offset, offset + length)
    if kept and len(data) == length and zlib.crc32(data) == crc:
        kept.put(shard.parent, name, data)
    return data


_opening = threading.Lock()


def _opened() -> Records | None:
    if _state.folder is None:
        return None
    with _opening:
        if _state.records is None:
            _state.records = Records(_state.folder / _FOLDER, _state.limit)
    return _state.records


class Records:
    """Records of data sets in a folder, a file each, up to a limit.

    Training takes images in a new order every epoch, so none is likelier to come again than another: when the folder is
    full, what other data sets left goes first, oldest first, and then nothing more is kept.

    Args:
      folder: which must exist.
      limit: bytes that it may hold.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit, self._lock, self._said = folder, limit, threading.Lock(), False
        entries = [(path, path.stat()) for path in folder.glob("*/*") if _ENTRY.fullmatch(path.name)]
        self._size = sum(status.st_size for _, status in entries)
        # Oldest last, to be taken off the end.
        self._old = [(path, status.st_size) for path, status in sorted(entries, key=lambda entry: -entry[1].st_mtime)]

    def get(self, root: Path, name: str) -> bytes | None:
        """What is kept of a record of the data set at ``root``; None for nothing."""
        try:
            return (self._folder / _identity(root) / name).read_bytes()
        except OSError:
            return None

    def put(self, root: Path, name: str, data: bytes) -> None:
        """Keeps a record where there is room; a full disk only means that nothing is kept."""
        path = self._folder / _identity(root) / name
        if not self._room(len(data), path.parent):
            return
        partial = path.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._say(f"the cache of records in {self._folder} cannot be written ({error.strerror}): nothing is kept")

    def drop(self, root: Path, name: str) -> None:
        """Forgets a record that is not as it was written."""
        (self._folder / _identity(root) / name).unlink(missing_ok=True)

    def _room(self, size: int, own: Path) -> bool:
        with self._lock:
            while self._size + size > self._limit and self._old:
                path, freed = self._old.pop()
                if path.parent != own:
                    with contextlib.suppress(OSError):
                        path.unlink()
                        self._size -= freed
            if self._size + size > self._limit:
                self._say(f"the cache of records in {self._folder} is full: --cache_gb={self._limit / 1e9:g}")
                return False
            self._size += size
            return True

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            print(f"note: {text}", file=sys.stderr)


@functools.lru_cache(64)
def _identity(root: Path) -> str:
    return hashlib.sha256(str(root).encode()).hexdigest()[:24]
