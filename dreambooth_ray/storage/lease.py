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
_RENEW_INTERVAL_S, _SILENCE_S = 10.0, 90.0
_POLL_S = 1.0
# Beyond this a holder that is silent has been silent for too long.
PATIENCE_S = _SILENCE_S + 2 * _RENEW_INTERVAL_S


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

    def is_gone(self, this_process: "Holder", now_s: float) -> bool:
        """Released, dead on this machine, or silent for too long."""
        if self.released or now_s - self.seen > _SILENCE_S:
            return True
        if (self.host, self.boot) != (this_process.host, this_process.boot):
            return False
        # Where processes can not be looked up, silence alone decides.
        return bool(this_process.started) and _start_ticks(self.pid) != self.started


class Lease:
    """Held inside its `with` block, which a SIGINT ends if the lease is lost.

    raises: StorageError on entry, if somebody else holds it; on exit, if it was lost
    """

    def __init__(self, store: Store, patience_s: float = 0.0) -> None:
        """patience_s: how long a holder that may be dead, on another host, is waited for"""
        self._store, self._stop, self._patience_s = store, threading.Event(), patience_s
        self._own_holder = replace(_describe_this_process(), nonce=uuid.uuid4().hex)
        self._number = 0
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._lost = False

    def __enter__(self) -> "Lease":
        number, holder = self._read_newest()
        deadline = time.monotonic() + self._patience_s
        while holder is not None and not holder.is_gone(self._own_holder, time.time()):
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                number, holder = self._read_newest()
                continue
            raise StorageError(
                f"{self._store.uri} is being worked on by process {holder.pid} on {holder.host}; "
                "wait for it, end it, or choose another run_id"
            )
        self._number = number + 1
        if not self._store.create(self._lease_file(self._number), self._holder_json()):
            raise StorageError(
                f"{self._store.uri} has just been taken by another process; wait for it, end it, "
                "or choose another run_id"
            )
        if number:
            self._store.remove(self._lease_file(number))
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
            self._store.write(self._lease_file(self._number), self._holder_json(released=True))
        elif kind in (None, KeyboardInterrupt):
            raise StorageError(
                f"{self._store.uri} has been taken by another process while this one was silent, "
                "and two would spoil it; that one goes on"
            ) from error

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_INTERVAL_S):
            try:
                if self._read_newest()[0] > self._number:
                    self._lost = True
                    # Whatever it is that the holder does, here and now: nothing else ends it.
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._store.write(self._lease_file(self._number), self._holder_json())
            except DreamBoothError:
                continue  # what needs storage will say so

    def _read_newest(self) -> tuple[int, Holder | None]:
        matches = (_NAME.fullmatch(name) for name in self._store.names(LEASES))
        number = max((int(match.group(1)) for match in matches if match), default=0)
        if not number:
            return 0, None
        try:
            return number, Holder(**json.loads(self._store.read(self._lease_file(number))))
        except (FileNotFoundError, ValueError, TypeError):
            return number, None

    def _lease_file(self, number: int) -> str:
        return f"{LEASES}/{number:06d}.json"

    def _holder_json(self, released: bool = False) -> bytes:
        return json.dumps(
            {**asdict(self._own_holder), "seen": time.time(), "released": released}
        ).encode()


def _describe_this_process() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), _boot_id(), pid, _start_ticks(pid) or 0.0, time.time())


def _boot_id() -> str:
    """What tells this boot, and this container, of a machine from others of its name."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _start_ticks(pid: int) -> float | None:
    """When a process of this machine was started, in clock ticks since boot; None if none is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else float(fields[19])
