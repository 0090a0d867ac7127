"""The driver's eye on a run: notices, requests to stop, and waits that can't succeed."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import ray

from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.worker_messages import unread

_INTERVAL_S = 1.0


def missing(cluster: ClusterConfig, there: dict[str, float], alive_hosts: int) -> str | None:
    """What the smallest group of workers needs and the cluster has not, in words; pure.

    there: the cluster's resources in total, as Ray counts them
    """
    kind = "GPU" if cluster.gpus else "CPU"
    has, needs = there.get(kind, 0.0), float(cluster.span.min)
    if has >= needs:
        return None
    return (
        f"cluster.workers needs at least {needs:g} {kind}s, one each, and the {alive_hosts} hosts "
        f"of the cluster have {has:g}; add hosts, or set cluster.workers={{min: {max(1, int(has))}"
        f", max: {cluster.span.max}}}"
    )


class Wait:
    """How long something has been missing without a break."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None

    def is_over(self, is_missing: bool, now: float) -> bool:
        """Whether patience is at its end."""
        if not is_missing:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._patience_s


class RunMonitor:
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
        self._ended, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._wait = Wait(cluster.wait_s)
        self._handler: Any = None
        self.reason: str | None = None

    def __enter__(self) -> "RunMonitor":
        self._seen: set[str] = set()
        unread(self._run, self._seen)
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
        self._tell()

    @property
    def is_stopping(self) -> bool:
        """Whether the workers have been asked to save and end."""
        return self._asked.is_set()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()

    def _look(self) -> None:
        written = False
        while not self._ended.wait(_INTERVAL_S):
            try:
                if self._asked.is_set() and not written:
                    self._say("SIGTERM: saving a checkpoint, then ending")
                    self._run.write(paths.STOP, b"{}")
                    written = True
                self._tell()
            except DreamBoothError:
                continue  # storage is away: workers say so if it stays away
            if self._lacks_machines():
                return

    def _tell(self) -> None:
        for text in unread(self._run, self._seen):
            self._say(text)

    def _lacks_machines(self) -> bool:
        hosts = [node for node in ray.nodes() if node["Alive"]]
        there: dict[str, float] = {}
        for node in hosts:
            for kind, amount in node["Resources"].items():
                there[kind] = there.get(kind, 0.0) + amount
        lack = missing(self._cluster, there, len(hosts))
        if not self._wait.is_over(lack is not None, time.monotonic()):
            return False
        self.reason = f"waited {self._cluster.wait_s:g} s in vain: {lack}"
        self._end()
        return True
