"""Who holds a lease: a process, told from others of its machine and of other machines."""

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

# Of leases that do not say how long they last: those of earlier versions.
DEFAULT_LEASE_S = 90.0


@dataclass(frozen=True)
class Holder:
    """The content of a lease.

    pid, started: the process, and when it was started (clock ticks since boot)
    boot: this boot and process namespace of `host`; seen: Unix seconds, for people alone
    nonce: of this attempt, tells our own lease from another's of the same process
    num_renewals: changes while the holder lives; lease_s: silence after which it is dead
    purpose: what it is held for, where those who come next have to know
    """

    host: str = ""
    boot: str = ""
    pid: int = 0
    started: float = 0.0
    seen: float = 0.0
    released: bool = False
    nonce: str = ""
    num_renewals: int = 0
    lease_s: float = DEFAULT_LEASE_S
    purpose: str = ""

    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine that can be looked up."""
        # Where processes can not be looked up, silence alone decides.
        return bool(self.started) and (self.host, self.boot) == (
            socket.gethostname(),
            _boot_and_container_id(),
        )

    def is_dead_here(self) -> bool:
        """Whether it was a process of this machine, which has ended."""
        return self.is_here() and _start_ticks(self.pid) != self.started

    def renewed(self) -> "Holder":
        """The same, once more."""
        return replace(self, seen=time.time(), num_renewals=self.num_renewals + 1)

    def as_json(self) -> bytes:
        """As stored."""
        return json.dumps(asdict(self)).encode()


_FIELDS = {field.name for field in fields(Holder)}


def parse_lease_holder(content: bytes, default_lease_s: float = DEFAULT_LEASE_S) -> Holder:
    """What a lease says; what is missing, malformed or of another version is left as unknown."""
    unknown_holder = Holder(lease_s=default_lease_s)
    try:
        stored_fields: dict[str, Any] = json.loads(content)
        known_fields = {
            name: stored_fields[name]
            for name in stored_fields.keys() & _FIELDS
            if _has_type_of(stored_fields[name], getattr(unknown_holder, name))
        }
    except (ValueError, TypeError, AttributeError):
        return unknown_holder
    return replace(unknown_holder, **known_fields)


def _has_type_of(value: object, default: object) -> bool:
    return isinstance(value, (float, int) if isinstance(default, float) else type(default))


def make_process_holder(lease_s: float, purpose: str = "") -> Holder:
    """This process, in a new attempt to hold something."""
    pid = os.getpid()
    return Holder(
        socket.gethostname(),
        _boot_and_container_id(),
        pid,
        _start_ticks(pid) or 0.0,
        time.time(),
        nonce=uuid.uuid4().hex,
        lease_s=lease_s,
        purpose=purpose,
    )


def _boot_and_container_id() -> str:
    """What tells this boot, and this container, of a machine from others of its name."""
    boot_and_namespace_ids = []
    with contextlib.suppress(OSError):
        boot_and_namespace_ids.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        boot_and_namespace_ids.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(boot_and_namespace_ids)


def _start_ticks(pid: int) -> float | None:
    """When a process of this machine was started, in clock ticks since boot; None if none is."""
    try:
        fields_after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields_after_name[0] in "ZX" else float(fields_after_name[19])
