"""What runc is told of a container: a configuration by the OCI runtime specification, as a
container runtime writes it for a pod of Kubernetes' restricted security standard.
"""

import json
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, Any]
# Podman's and Docker's default filter of system calls, which RuntimeDefault means; of Debian's
# golang-github-containers-common, on which buildah depends.
SECCOMP_PROFILE = Path("/usr/share/containers/seccomp.json")
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"]  # fmt: skip
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# kubelet gives 1024. There everything is in a pod; here the machine's other processes are in none,
# each of them counts 1024, and those of a pod count together. Ray starts some ten at once.
_SHARES_A_CPU = 10 * 1024
PATH = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine inside a container."""

    source: Path
    target: str
    is_read_only: bool = False


@dataclass(frozen=True)
class ContainerSpec:
    """One container. memory_bytes: its limit, 0 for none; num_cpus: that it asks for; group: of its
    volumes, fsGroup
    """

    rootfs: Path
    command: list[str]
    environment: dict[str, str]
    hostname: str
    network_namespace: str
    user: int = 1000
    group: int = 1000
    directory: str = "/home/ray"
    mounts: list[Mount] = field(default_factory=list)
    memory_bytes: int = 0
    num_cpus: float = 1.0
    has_read_only_root: bool = True


def make_config(spec: ContainerSpec) -> Tree:
    """The configuration of a container: no capabilities, no new privileges, own namespaces."""
    environment = {"PATH": PATH, "HOSTNAME": spec.hostname, **spec.environment}
    # A container runtime's default, where this machine allows as many.
    num_files = min(1048576, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    limits: Tree = {"cpu": {"shares": max(2, int(_SHARES_A_CPU * spec.num_cpus))}}
    if spec.memory_bytes:
        limits["memory"] = {"limit": spec.memory_bytes}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": spec.user, "gid": spec.group, "additionalGids": [spec.group]},
            "args": spec.command,
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": spec.directory,
            "capabilities": {
                kind: [] for kind in ("bounding", "effective", "inheritable", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": num_files, "soft": num_files}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(spec.rootfs), "readonly": spec.has_read_only_root},
        "hostname": spec.hostname,
        "mounts": [*_system_mounts(), *(_bind(mount) for mount in spec.mounts)],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                {"type": "network", "path": f"/var/run/netns/{spec.network_namespace}"},
            ],
            "resources": {"devices": [{"allow": False, "access": "rwm"}], **limits},
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": read_seccomp(),
        },
    }


def read_seccomp() -> Tree:
    """The default filter for a process without capabilities on this architecture."""
    profile = json.loads(SECCOMP_PROFILE.read_text())
    rules = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        is_ours = "amd64" in (includes.get("arches") or ["amd64"])
        if includes.get("caps") or not is_ours or "amd64" in (excludes.get("arches") or []):
            continue
        kept = {key: rule[key] for key in ("names", "action", "errnoRet") if key in rule}
        rules.append({**kept, "args": rule.get("args") or []})
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def _system_mounts() -> list[Tree]:
    safe = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": [*safe, "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": [*safe, "relatime", "ro"]},
    ]  # fmt: skip


def _bind(mount: Mount) -> Tree:
    options = ["rbind", "rprivate", "nosuid", "nodev", "ro" if mount.is_read_only else "rw"]
    return {"destination": mount.target, "source": str(mount.source), "options": options}
