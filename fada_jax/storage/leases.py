"""Whose a place in a bucket is: an object that its holder renews, written only if nobody else has written it meanwhile.

A holder that stops renewing, because its machine is gone, loses the place to the next that asks for it. One that comes
back later finds out at its next write, and ends. No clock is compared with another machine's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fada_jax.errors import UserError
from fada_jax.storage import objects

# Seconds between renewals, and how long a lease stands that is not renewed.
RENEW, STANDS = 10.0, 30.0
_MARK = "a lease of fada-jax"
_held: list[Lease] = []


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a place.

    Attributes:
      token: of the run.
      host, pid: where it runs, for people.
      machine, started: tell whether that process still runs, to another one on the same machine.
    """

    token: str
    host: str
    pid: int
    machine: str
    started: str

    @staticmethod
    def this() -> Holder:
        """This process."""
        return Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine(), _started(os.getpid()))

    @property
    def gone(self) -> bool:
        """Whether it ran on this machine and does so no more."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


def _machine() -> str:
    """This boot of this machine, and which of its processes are seen from here; '' where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in the system's ticks; '' where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    # A dead process that nobody has waited for holds nothing.
    return "" if fields[0] in "ZX" else fields[19]


class Lease:
    """A place that this process holds.

    Args:
      path: of its object.
      holder: this process.
      version: that its first write made.
    """

    def __init__(self, path: str, holder: Holder, version: str) -> None:
        self._path, self._holder, self._version, self._count = path, holder, version, 0
        self._lock, self._ended, self._taken = threading.Lock(), threading.Event(), ""
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Renews it now.

        Raises:
          UserError: another run has taken the place.
          OSError: the store gives no answer.
        """
        self._renew()
        self.check()

    def check(self) -> None:
        """Raises UserError where another run has taken the place, as far as is known."""
        if self._taken:
            raise UserError(f"{self._path}: another run has taken this place over ({self._taken}): this one stops")

    def release(self) -> None:
        """Lets the next one have the place at once."""
        self._ended.set()
        with self._lock, contextlib.suppress(OSError):
            if not self._taken:
                objects.write_if(self._path, _text(self._holder, self._count + 1, released=True), self._version)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW):
            # A store that gives no answer is asked again; nobody else can take the place there either.
            with contextlib.suppress(OSError):
                self._renew()
            if self._taken:
                return

    def _renew(self) -> None:
        with self._lock:
            if self._taken or self._ended.is_set():
                return
            self._count += 1
            version = objects.write_if(self._path, _text(self._holder, self._count), self._version)
            if version is None:
                self._taken = _who(_read(self._path)[0])
            else:
                self._version = version


def check() -> None:
    """Raises UserError where a place that this process held is another's, as far as is known."""
    for lease in _held:
        lease.check()


def confirm() -> None:
    """Renews all leases of this process; raises as ``Lease.confirm``."""
    for lease in _held:
        lease.confirm()


@contextlib.contextmanager
def held(path: Path, busy: str) -> Iterator[Lease]:
    """Holds a place while open.

    Args:
      path: of the lease's object.
      busy: the error where another process holds it.

    Raises:
      UserError: another process holds it.
      OSError: the store cannot be written.
    """
    holder = Holder.this()
    lease = Lease(str(path), holder, _taken(str(path), holder, busy))
    _held.append(lease)
    try:
        yield lease
    finally:
        _held.remove(lease)
        lease.release()


def _taken(path: str, holder: Holder, busy: str) -> str:
    """Takes a place that is free, or whose holder does not renew it; returns the version of its object."""
    values, version = _read(path)
    if values and not values.get("released") and not _holder(values).gone:
        _wait_for(path, version, f"{busy} ({_who(values)})")
    taken = objects.write_if(path, _text(holder, 0), version)
    if taken is None:
        raise UserError(f"{busy} ({_who(_read(path)[0])})")
    return taken


def _wait_for(path: str, version: str, busy: str) -> None:
    """Returns when a lease was not renewed for as long as it stands.

    Raises:
      UserError: it was renewed.
    """
    print(f"{path} is held; seeing for {STANDS:.0f} seconds at most whether its run is alive", file=sys.stderr)
    began = time.monotonic()
    while time.monotonic() - began < STANDS:
        time.sleep(1)
        now = objects.info(path)
        if now is None or now.version != version:
            raise UserError(busy)


def _read(path: str) -> tuple[dict[str, Any], str]:
    """What a lease's object says, and its version; nothing and '' where there is none.

    Raises:
      UserError: somebody else's object lies there.
    """
    found = objects.info(path)
    if not found:
        return {}, ""
    try:
        values = json.loads(objects.read(path))
        if values["made_by"] == _MARK:
            _holder(values)
            return values, found.version
    except FileNotFoundError:
        return {}, ""
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is there already and is no lease of fada-jax: move it away or use another place")


def _holder(values: dict[str, Any]) -> Holder:
    return Holder(**{field.name: values[field.name] for field in dataclasses.fields(Holder)})


def _who(values: dict[str, Any]) -> str:
    return f"process {values['pid']} on {values['host']}" if values else "its lease is gone"


def _text(holder: Holder, count: int, *, released: bool = False) -> bytes:
    return json.dumps({"made_by": _MARK, **dataclasses.asdict(holder), "count": count, "released": released}).encode()
