"""One process at a time works on a run: a lease, held by conditional writes and a heartbeat.

Each holder creates the next numbered lease; of several that try, one wins. A lease whose
holder is dead or silent can be followed by the next number, and its holder, should it come
back, sees that and stops.
"""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from dreambooth_ray.errors import DreamBoothError, StorageError
from dreambooth_ray.storage.store import Store

LEASES = "leases"
_NAME = re.compile(r"(\d{6})\.json")
_BEAT_S, _SILENCE_S = 10.0, 90.0
_POLL_S = 1.0
# Beyond this a holder that is silent has been silent for too long.
PATIENCE_S = _SILENCE_S + 2 * _BEAT_S


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and when it was last heard of (Unix seconds)."""

    host: str
    boot: str
    pid: int
    started: float
    seen: float
    released: bool = False
    nonce: str = ""  # of this attempt: tells our own lease from another's of the same process

    def is_gone(self, here: "Holder", now: float) -> bool:
        """Released, dead on this machine, or silent for too long."""
        if self.released or now - self.seen > _SILENCE_S:
            return True
        if (self.host, self.boot) != (here.host, here.boot):
            return False
        # Where processes can not be looked up, silence alone decides.
        return bool(here.started) and _started(self.pid) != self.started


class Lease:
    """Held inside its `with` block, which a SIGINT ends if the lease is lost.

    raises: StorageError on entry, if somebody else holds it; on exit, if it was lost
    """

    def __init__(self, store: Store, patience_s: float = 0.0) -> None:
        """patience_s: how long a holder that may be dead, on another host, is waited for"""
        self._store, self._stop, self._patience_s = store, threading.Event(), patience_s
        self._me, self._number = replace(_here(), nonce=uuid.uuid4().hex), 0
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._lost = False

    def __enter__(self) -> "Lease":
        number, holder = self._newest()
        deadline = time.monotonic() + self._patience_s
        while holder is not None and not holder.is_gone(self._me, time.time()):
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                number, holder = self._newest()
                continue
            raise StorageError(
                f"{self._store.uri} is being worked on by process {holder.pid} on {holder.host}; "
                "wait for it, end it, or choose another run_id"
            )
        self._number = number + 1
        if not self._store.create(self._name(self._number), self._text()):
            raise StorageError(
                f"{self._store.uri} has just been taken by another process; wait for it, end it, "
                "or choose another run_id"
            )
        if number:
            self._store.remove(self._name(number))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if not self._lost:
            self._store.write(self._name(self._number), self._text(released=True))
        elif kind in (None, KeyboardInterrupt):
            raise StorageError(
                f"{self._store.uri} has been taken by another process while this one was silent, "
                "and two would spoil it; that one goes on"
            ) from error

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_S):
            try:
                if self._newest()[0] > self._number:
                    self._lost = True
                    # Whatever it is that the holder does, here and now: nothing else ends it.
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._store.write(self._name(self._number), self._text())
            except DreamBoothError:
                continue  # what needs storage will say so

    def _newest(self) -> tuple[int, Holder | None]:
        found = (_NAME.fullmatch(name) for name in self._store.names(LEASES))
        number = max((int(m.group(1)) for m in found if m), default=0)
        if not number:
            return 0, None
        try:
            return number, Holder(**json.loads(self._store.read(self._name(number))))
        except (FileNotFoundError, ValueError, TypeError):
            return number, None

    def _name(self, number: int) -> str:
        return f"{LEASES}/{number:06d}.json"

    def _text(self, released: bool = False) -> bytes:
        return json.dumps({**asdict(self._me), "seen": time.time(), "released": released}).encode()


def _here() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), _boot(), pid, _started(pid) or 0.0, time.time())


def _boot() -> str:
    """What tells this boot, and this container, of a machine from others of its name."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> float | None:
    """When a process of this machine was started, in clock ticks since boot; None if none is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else float(fields[19])
