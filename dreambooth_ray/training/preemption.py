"""Notices that a host is about to be taken away, as clouds give for spot machines.

Ray learns of them from what drains its nodes, Kubernetes or a cloud's launcher, and starts the
workers again when the time is up: from the newest checkpoint, which had better be of this moment.
"""

import time
from collections.abc import Callable

import ray.train
from ray.train import PreemptionInfo

# Ray asks its head as often.
_INTERVAL_S = 5.0


class PreemptionWatcher:
    """Whether hosts of the run are about to be taken away; each is told once.

    Asking is a call of all workers together. So the first one decides when it is time to ask, and
    all are told in the step's own exchange.
    """

    def __init__(
        self,
        read_info: Callable[[], PreemptionInfo | None] = ray.train.get_preemption_info,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_info, self._clock = read_info, clock
        self._asked_at_s = clock()
        self._told_hosts: set[str] = set()

    @property
    def is_check_due(self) -> bool:
        """Whether some seconds have gone by since the last `ask_ray_for_notice`."""
        return self._clock() - self._asked_at_s >= _INTERVAL_S

    def ask_ray_for_notice(self) -> str | None:
        """What is about to go that was not told before, in words; None for nothing.

        A collective call.
        """
        self._asked_at_s = self._clock()
        preemption_info = self._read_info()
        new_hosts = (
            set(preemption_info.preempted_node_ids) - self._told_hosts if preemption_info else set()
        )
        if preemption_info is None or not new_hosts:
            return None
        self._told_hosts |= new_hosts
        time_left_text = ""
        if preemption_info.deadline_ms is not None:
            time_left_text = (
                f" in {max(0.0, preemption_info.deadline_ms / 1000 - time.time()):.0f} s"
            )
        return f"{len(new_hosts)} of the run's hosts will be taken away{time_left_text}"
