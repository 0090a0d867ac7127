"""Hosts on one Linux machine: a network namespace each, joined by a bridge.

A host is one init process in namespaces of its own (network, processes, mounts, host name): it
has its own address, its own /tmp and /dev/shm, sees no process of another, and when its init is
killed, everything in it dies with it, as when a machine loses power. Needs root and iproute2.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.errors import CapacityError, ConfigError

INTERFACE = "eth0"
_LOCK_FILE = Path("/run/dreambooth-networks.lock")
_SHM_SIZE = "2g"
_STARTED = ".started"
_POLL_S = 0.02
_CHANGE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Host:
    """One host that runs.

    pid: its init as the machine sees it; ticks: that process's start time, against reuse of pids
    """

    name: str
    namespace: str
    address: str
    pid: int
    ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether its init runs."""
        return _start_ticks(self.pid) == self.ticks


def check_root_and_tools() -> None:
    """raises ConfigError if this machine or user can't make hosts, saying what is missing."""
    if os.geteuid() != 0:
        raise ConfigError("hosts in network namespaces need root; run the command as root")
    for tool, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if not shutil.which(tool):
            raise ConfigError(f"{tool!r} is not installed; install the package {package}")


@dataclass(frozen=True)
class HostNetwork:
    """A bridge with a /24 of its own; the machine itself is .1 in it."""

    bridge: str
    prefix: str

    @property
    def gateway(self) -> str:
        """The machine's own address in this network."""
        return f"{self.prefix}.1"

    @staticmethod
    def create(tag: str) -> "HostNetwork":
        """A bridge named after `tag` (at most 8 letters) on the first free 10.213.n.0/24."""
        with _LOCK_FILE.open("w") as lock_file:
            # Of two processes that look at once, both would find the same one free.
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            return HostNetwork._create_bridge(tag)

    @staticmethod
    def _create_bridge(tag: str) -> "HostNetwork":
        interface_addresses = json.dumps(json.loads(_read_output("ip", "-j", "address")))
        for subnet_number in range(1, 255):
            address_prefix = f"10.213.{subnet_number}"
            if f'"{address_prefix}.1"' not in interface_addresses:
                bridge = HostNetwork(f"db-{tag}", address_prefix)
                _run_command("ip", "link", "add", bridge.bridge, "type", "bridge")
                _run_command("ip", "address", "add", f"{bridge.gateway}/24", "dev", bridge.bridge)
                _run_command("ip", "link", "set", bridge.bridge, "up")
                return bridge
        raise CapacityError("all of 10.213.1.0 to 10.213.254.0 are taken; take down old clusters")

    def remove(self) -> None:
        """Remove the bridge; its hosts have to be gone."""
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)

    def add_namespace(self, name: str, number: int) -> tuple[str, str]:
        """A network namespace on the bridge, without a process; its name and address.

        number: last part of its address, 2 to 254
        """
        namespace, address = f"{self.bridge}-{name}", f"{self.prefix}.{number}"
        outer_interface = self._outer_veth_name(address)
        _run_command("ip", "netns", "add", namespace)
        _run_command(
            "ip", "link", "add", outer_interface, "type", "veth", "peer", "name", INTERFACE,
            "netns", namespace,
        )  # fmt: skip
        _run_command("ip", "link", "set", outer_interface, "master", self.bridge, "up")
        for ip_arguments in (
            f"address add {address}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            "link set lo up",
            f"route add default via {self.gateway}",
        ):
            _run_command("ip", "-n", namespace, *ip_arguments.split())
        return namespace, address

    def remove_namespace(self, namespace: str, address: str) -> None:
        """Undo add_namespace, as far as it is there."""
        for ip_arguments in (
            ["link", "del", self._outer_veth_name(address)],
            ["netns", "del", namespace],
        ):
            subprocess.run(["ip", *ip_arguments], capture_output=True, check=False)

    def start(
        self,
        name: str,
        number: int,
        folder: Path,
        command: Sequence[str],
        environment: dict[str, str],
    ) -> Host:
        """Start a host whose init runs `command`; its output goes to folder/NAME/log.

        number: last part of its address, 2 to 254
        """
        host_folder = folder / name
        (host_folder / "tmp").mkdir(parents=True, exist_ok=True)
        namespace, address = self.add_namespace(name, number)
        init_script = (
            f"{_build_bind_mount_commands(host_folder / 'tmp')}"
            f'mount --rbind "{host_folder / "tmp"}" /tmp && '
            f"mount -t tmpfs -o size={_SHM_SIZE} tmpfs /dev/shm && "
            f'hostname {name} && touch /tmp/{_STARTED} && exec "$@"'
        )
        with (host_folder / "log").open("wb") as log_file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, "unshare", "--mount", "--uts", "--pid",
                 "--mount-proc", "--fork", "--kill-child", "sh", "-c", init_script, name, *command],
                env=environment, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file,
                start_new_session=True,
            )  # fmt: skip
        host = Host(name, namespace, address, process.pid, _start_ticks(process.pid) or 0)
        deadline = time.monotonic() + _CHANGE_TIMEOUT_S
        while not (host_folder / "tmp" / _STARTED).exists():
            if not host.is_alive or time.monotonic() > deadline:
                raise ConfigError(
                    f"host {name} did not start: {(host_folder / 'log').read_text().strip()}"
                )
            time.sleep(_POLL_S)
        (host_folder / "tmp" / _STARTED).unlink()
        return host

    def _outer_veth_name(self, address: str) -> str:
        return f"{self.bridge[3:]}-{address.rpartition('.')[2]}"[:15]

    def disconnect_host(self, host: Host) -> None:
        """Pull the host's cable: nothing arrives, and no process is notified."""
        _run_command("ip", "link", "set", self._outer_veth_name(host.address), "down")

    def reconnect_host(self, host: Host) -> None:
        """Undo cut, delay and slow."""
        _run_command("ip", "link", "set", self._outer_veth_name(host.address), "up")
        subprocess.run(
            ["tc", "qdisc", "del", "dev", self._outer_veth_name(host.address), "root"],
            capture_output=True,
            check=False,
        )

    def delay_packets(self, host: Host, delay_ms: int, loss_percent: float = 0.0) -> None:
        """Hold back every packet to the host, and lose some.

        raises: ConfigError if the kernel has no netem
        """
        netem_options = f"delay {delay_ms}ms loss {loss_percent}%"
        _run_command(
            "tc",
            "qdisc",
            "replace",
            "dev",
            self._outer_veth_name(host.address),
            "root",
            "netem",
            *netem_options.split(),
        )

    def limit_bandwidth(self, host: Host, kilobits_s: int) -> None:
        """Let no more than so many kilobits a second through to the host."""
        tbf_options = f"rate {kilobits_s}kbit burst 32kbit latency 400ms"
        _run_command(
            "tc",
            "qdisc",
            "replace",
            "dev",
            self._outer_veth_name(host.address),
            "root",
            "tbf",
            *tbf_options.split(),
        )

    def kill(self, host: Host) -> None:
        """Power off: the cable first, so that no process of it can close its connections."""
        self.disconnect_host(host)
        if host.is_alive:
            os.kill(host.pid, signal.SIGKILL)
        deadline = time.monotonic() + _CHANGE_TIMEOUT_S
        while host.is_alive and time.monotonic() < deadline:
            _reap_child_process(host.pid)
            time.sleep(_POLL_S)
        self.remove_namespace(host.namespace, host.address)


def list_required_tmp_folders() -> list[Path]:
    """Folders below /tmp that a host needs though it has a /tmp of its own: Python and our code.

    A checkout, or its environment, may lie there.
    """
    python_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    candidate_folders = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), *python_path]
    resolved_folders = {Path(folder).resolve() for folder in candidate_folders if folder}
    return sorted(folder for folder in resolved_folders if folder.is_relative_to("/tmp"))


def _build_bind_mount_commands(host_tmp: Path) -> str:
    """Shell commands that make shared folders appear in a host's /tmp under their own names."""
    shell_commands = ""
    for folder in list_required_tmp_folders():
        mount_point = host_tmp / folder.relative_to("/tmp")
        shell_commands += f'mkdir -p "{mount_point}" && mount --bind "{folder}" "{mount_point}" && '
    return shell_commands


def command_in_host(host: Host, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` inside a host.

    raises: ConfigError if the host is gone
    """
    children_file = Path(f"/proc/{host.pid}/task/{host.pid}/children")
    init_pids = children_file.read_text().split() if host.is_alive else []
    if not init_pids:
        raise ConfigError(f"host {host.name} does not run; see `dreambooth cluster status`")
    return [
        "nsenter",
        "--target",
        init_pids[0],
        "--net",
        "--mount",
        "--uts",
        "--pid",
        "--",
        *command,
    ]


def _start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks after boot; None if it is gone or a zombie."""
    try:
        stat_text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    stat_fields = stat_text.rpartition(")")[2].split()
    return None if stat_fields[0] == "Z" else int(stat_fields[19])


def _reap_child_process(pid: int) -> None:
    """Collect a child that this process started; hosts of an earlier command are init's."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _read_output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        error_text = result.stderr.strip() or result.stdout.strip()
        raise ConfigError(
            f"`{' '.join(command)}` failed: {error_text}; this kernel may lack the feature"
        )
    return result.stdout


def _run_command(*command: str) -> None:
    _read_output(*command)
