"""Paths of buckets, with the methods of ``pathlib.Path`` that are used here; folders there are beginnings of names."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from etils import epath

from fada_jax.errors import UserError
from fada_jax.storage import objects

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_OBJECT = re.compile(r"(gs|s3)://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")
# Folder -> bytes of what lies below it, while ``listed`` is open.
_listed: dict[str, dict[str, int]] = {}


class Status(NamedTuple):
    """Of an object, as ``os.stat`` calls it."""

    st_size: int


# epath has no public name for the class behind its paths.
class ObjectPath(type(epath.Path("gs://bucket"))):  # type: ignore[misc]
    """The path of an object, or of a folder of objects.

    Every method asks the store, so nothing is known of what another process wrote between two of them. Methods raise
    what those of ``pathlib.Path`` raise.
    """

    def absolute(self) -> ObjectPath:
        return self

    def resolve(self, strict: bool = False) -> ObjectPath:
        return self

    def is_file(self) -> bool:
        if (known := self._known()) is not None:
            return known[1] in known[0]
        return objects.info(str(self)) is not None

    def is_dir(self) -> bool:
        if (below := self._below()) is not None:
            return bool(below)
        return bool(objects.children(str(self)))

    def is_symlink(self) -> bool:
        return False

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def stat(self) -> Any:
        if (known := self._known()) is not None and known[1] in known[0]:
            return Status(known[0][known[1]])
        if (found := objects.info(str(self))) is None:
            raise FileNotFoundError(2, "no such object", str(self))
        return Status(found.size)

    def iterdir(self) -> Iterator[ObjectPath]:
        if (below := self._below()) is not None:
            return (self / name for name in sorted({name.partition("/")[0] for name in below}))
        return (self / name for name in objects.children(str(self)))

    def tree(self) -> dict[str, int]:
        """Bytes of everything below this folder, by its path from here."""
        return objects.tree(str(self))

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        below = self._below()
        names = list(self.tree()) if below is None else below
        return (self / name for name in names if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects and folders by a pattern, in which ``**`` stands for any folders, too."""
        parts = pattern.split("/")
        if len(parts) == 1:
            return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
        expression = re.compile("".join(_expression(parts)))
        return (self / name for name in self.tree() if expression.fullmatch(name))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there when something is in it."""

    def rmdir(self) -> None:
        """Nothing: a folder is gone when nothing is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "no such object", str(self))
        objects.remove(str(self))

    def read_bytes(self) -> bytes:
        return objects.read(str(self))

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes from ``start`` to ``end``; fewer where the object ends before."""
        return objects.read(str(self), start, end)

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> int:
        objects.write(str(self), data)
        return len(data)

    def write_text(self, text: str, encoding: str | None = None) -> int:
        return self.write_bytes(text.encode())

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """All of the object in memory, to be read: what is large is fetched or read by ranges instead."""
        if mode not in ("r", "rb"):
            raise ValueError(f"objects are written whole, not opened with {mode!r}")
        file = io.BytesIO(self.read_bytes())
        return file if mode == "rb" else io.TextIOWrapper(file, encoding="utf-8")

    def _below(self) -> list[str] | None:
        """What lies below this folder by the listing that holds it; None where there is none."""
        if (known := self._known()) is None:
            return None
        beginning = f"{known[1]}/" if known[1] else ""
        return [name[len(beginning) :] for name in known[0] if name.startswith(beginning)]

    def _known(self) -> tuple[dict[str, int], str] | None:
        """The listing that holds this path, and the path in it; None where there is none."""
        text = str(self)
        for folder, names in _listed.items():
            if text == folder or text.startswith(f"{folder}/"):
                return names, text[len(folder) + 1 :]
        return None


def _expression(parts: list[str]) -> Iterator[str]:
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            yield ".*" if last else "(?:[^/]+/)*"
        else:
            yield fnmatch.translate(part).removeprefix("(?s:").removesuffix(")\\Z").replace(".*", "[^/]*")
            yield "" if last else "/"


def is_object(path: Any) -> bool:
    """Whether a path is one of a bucket."""
    return isinstance(path, ObjectPath)


def place(path: str | Path, name: str = "") -> Path:
    """A path that the user gave: local, ``gs://bucket/...`` or ``s3://bucket/...``.

    Args:
      path: as it was given.
      name: flag or key to name in the error.

    Returns:
      a ``pathlib.Path``, or an ``ObjectPath``, which has its methods.

    Raises:
      UserError: another scheme, which would become a local folder of that name, no bucket, or the library that serves
        the scheme is not installed.
    """
    if is_object(path):
        return path  # type: ignore[return-value]
    if not (scheme := check(path, name)):
        return Path(path)
    text = str(path)
    try:
        objects.system(text)
    except UserError as error:
        raise UserError(f"{name}{name and '='}{path}: {error}") from error
    # The same object whatever slashes stand around and between its names.
    bucket, *names = filter(None, text[5:].split("/"))
    return cast(Path, ObjectPath("/".join((f"{scheme}://{bucket}", *names))))


def check(path: str | Path, name: str = "") -> str:
    """The scheme of a path, '' of a local one.

    Raises:
      UserError: naming flag or key: another scheme, or no bucket.
    """
    text, title = str(path), f"{name}{name and '='}{path}"
    found = _SCHEME.match(text)
    if not found:
        return ""
    if found[1] not in objects.SCHEMES:
        raise UserError(f"{title}: {found[1]}:// is not supported, only local and mounted paths, gs:// and s3://")
    if not _OBJECT.fullmatch(text) or ".." in text.split("/"):
        raise UserError(f"{title}: write {found[1]}://BUCKET/NAME")
    return found[1]


@contextlib.contextmanager
def listed(folder: Path) -> Iterator[None]:
    """While open, what lies below a folder is asked for once, instead of at every look at one of its files."""
    text = str(folder)
    if not is_object(folder) or text in _listed:
        yield
        return
    _listed[text] = objects.tree(text)
    try:
        yield
    finally:
        del _listed[text]
