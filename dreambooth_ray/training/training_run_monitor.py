"""What the driver watches: workers' messages, requests to stop, waits that can't succeed."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import ray

from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.storage.error_tolerant_check import ErrorTolerantCheck
from dreambooth_ray.storage.lease import LeaseLostError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.stop_request import request_stop
from dreambooth_ray.training.worker_messages import read_new_messages

_INTERVAL_S = 1.0
# Between looks for workers' messages in an object store, which counts requests.
_REMOTE_MESSAGES_INTERVAL_S = 15.0


def describe_missing_machines(
    cluster: ClusterConfig, resources: dict[str, float], num_hosts: int
) -> str | None:
    """What the smallest group of workers needs and the cluster has not, in words; pure.

    resources: the cluster's resources in total, as Ray counts them
    """
    device_kind = "GPU" if cluster.gpus else "CPU"
    num_available_devices = resources.get(device_kind, 0.0)
    num_needed_devices = float(cluster.span.min)
    if num_available_devices >= num_needed_devices:
        return None
    return (
        f"cluster.workers needs at least {num_needed_devices:g} {device_kind}s, one each, "
        f"and the {num_hosts} hosts of the cluster have {num_available_devices:g}; add hosts, "
        "or set cluster.workers={min: "
        f"{max(1, int(num_available_devices))}, max: {cluster.span.max}}}"
    )


class MissingMachinesTimer:
    """How long something has been missing without a break."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None

    def has_run_out(self, is_missing: bool, now_s: float) -> bool:
        """Whether it has been missing for longer than the patience."""
        if not is_missing:
            self._since = None
            return False
        self._since = now_s if self._since is None else self._since
        return now_s - self._since >= self._patience_s


class TrainingRunMonitor:
    """Runs in a thread while the workers do; `reason` says why it ended a run, if it did."""

    def __init__(
        self,
        run: Store,
        cluster: ClusterConfig,
        say: Callable[[str], None],
        end: Callable[[], None],
    ) -> None:
        """end: ends the run"""
        self._run, self._cluster, self._say, self._end = run, cluster, say, end
        self._ended, self._stop_requested = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._monitor_run, name="watch", daemon=True)
        self._messages_check = ErrorTolerantCheck("reading the workers' messages", say)
        self._looked_at_s = time.monotonic()
        # A machine of its own gets no more of anything.
        self._wait_s = cluster.wait_s if cluster.ray_address else 0.0
        self._patience = MissingMachinesTimer(self._wait_s)
        self._has_told = False
        self._handler: Any = None
        self.reason: str | None = None

    def __enter__(self) -> "TrainingRunMonitor":
        self._read_names: set[str] = set()
        read_new_messages(self._run, self._read_names)  # those of earlier attempts
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        if not isinstance(error, LeaseLostError):
            self._messages_check.run(self._print_messages)

    @property
    def is_stopping(self) -> bool:
        """Whether the workers have been asked to save and end."""
        return self._stop_requested.is_set()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested.set()

    def _monitor_run(self) -> None:
        stop_request_check = ErrorTolerantCheck("asking the workers to stop", self._say)
        machines_check = ErrorTolerantCheck("looking at the cluster's machines", self._say)
        is_stop_written = False
        while not self._ended.wait(_INTERVAL_S) and self.reason is None:
            if self._stop_requested.is_set() and not is_stop_written:
                is_stop_written = stop_request_check.run(self._write_stop_request)
            if self._are_messages_due():
                self._messages_check.run(self._print_messages)
            machines_check.run(self._check_for_missing_machines)

    def _write_stop_request(self) -> None:
        request_stop(self._run)
        self._say("SIGTERM: saving a checkpoint, then ending")

    def _are_messages_due(self) -> bool:
        now_s = time.monotonic()
        is_check_due = (
            self._run.is_local or now_s - self._looked_at_s >= _REMOTE_MESSAGES_INTERVAL_S
        )
        if is_check_due:
            self._looked_at_s = now_s
        return is_check_due

    def _print_messages(self) -> None:
        for message in read_new_messages(self._run, self._read_names):
            self._say(message)

    def _check_for_missing_machines(self) -> None:
        alive_nodes = [node for node in ray.nodes() if node["Alive"]]
        cluster_resources: dict[str, float] = {}
        for node in alive_nodes:
            for resource_kind, resource_amount in node["Resources"].items():
                cluster_resources[resource_kind] = (
                    cluster_resources.get(resource_kind, 0.0) + resource_amount
                )
        missing_machines_text = describe_missing_machines(
            self._cluster, cluster_resources, len(alive_nodes)
        )
        if not self._patience.has_run_out(missing_machines_text is not None, time.monotonic()):
            if missing_machines_text and not self._has_told:
                self._say(f"waiting up to {self._wait_s:g} s for machines: {missing_machines_text}")
                self._has_told = True
            return
        self.reason = str(missing_machines_text)
        if self._wait_s:
            self.reason = f"waited {self._wait_s:g} s in vain: {missing_machines_text}"
        self._end()
