"""The endpoint on a cluster: offered load against latency, while replicas go from 1 to N and back.

Loads are shares of what one replica has in the closed loop of one caller. Images are asked for by a
Poisson process whether or not earlier ones have come.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.serve

from benchmarks.callers import GENERATE
from benchmarks.cluster_throughput import ClusterSetting, read_head_node_address
from benchmarks.serve_theme import run_callers, warm_up
from benchmarks.served_subjects import make_subjects
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import CapacityError, ConfigError
from serve.app import build
from serve.image_service import DEFAULT_POOL

PORT, APPLICATION = 8765, "dreambooth-bench"
# Of one replica's own rate: little, and for each of N replicas.
LITTLE, MUCH = 0.3, 0.7
# Phases of rising, or of falling, load at most: replicas come and go in their own time.
MAX_PHASES = 12
_POLL_S = 0.5


def measure(setting: ClusterSetting, counts: tuple[int, ...]) -> dict[str, Any]:
    """Phases of load on an endpoint of its own, which is taken down afterwards.

    raises: ConfigError if the cluster serves something already
    """
    if ray.serve.status().applications:
        raise ConfigError(
            f"the cluster at {setting.address} serves {', '.join(ray.serve.status().applications)}:"
            " bench would disturb it, and take its replicas; measure on a cluster that serves none"
        )
    config = make_serve_config(setting, max(counts))
    make_subjects(setting.storage, setting.model)
    try:
        ray.serve.start(http_options={"host": "0.0.0.0", "port": PORT})
        ray.serve.run(build(config), name=APPLICATION)
        url = f"http://{read_head_node_address()}:{PORT}{GENERATE}"
        warm_up(url, 1)
        with _open_replica_watcher() as replica_watcher:
            cases = _run_load_phases(url, replica_watcher, max(counts), setting.pick(8, 30))
    finally:
        ray.serve.shutdown()
    return {
        "cases": cases,
        "replicas_by_second": replica_watcher.history,
        "configuration": {
            "device": setting.device, "replicas": config.replicas.model_dump(mode="json"),
            "seconds_a_phase": setting.pick(8, 30),
        },
    }  # fmt: skip


def make_serve_config(setting: ClusterSetting, most: int) -> ServeConfig:
    """From one replica to `most`; in smoke profile they come for less work, and go sooner."""
    replica_settings = {
        "minimum": 1, "maximum": most, "gpus": setting.gpus,
        "target_steps": setting.pick(40, 400), "downscale_delay_s": setting.pick(5, 60),
    }  # fmt: skip
    return ServeConfig.model_validate(
        {
            "storage": {"uri": setting.storage},
            "models": {"base": setting.model},
            "replicas": replica_settings,
            "cluster": {"address": setting.address},
        }
    )


class ReplicaCountWatcher:
    """How many replicas answer, looked at twice a second by a thread."""

    def __init__(self) -> None:
        self.history: list[tuple[float, int]] = []
        self._ended, self._start_s = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._record_counts, name="replicas", daemon=True)
        self.now = count_replicas()
        self._thread.start()

    def _record_counts(self) -> None:
        while not self._ended.wait(_POLL_S):
            self.now = count_replicas()
            if not self.history or self.history[-1][1] != self.now:
                self.history.append((round(time.monotonic() - self._start_s, 1), self.now))

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


@contextmanager
def _open_replica_watcher() -> Iterator[ReplicaCountWatcher]:
    replica_watcher = ReplicaCountWatcher()
    try:
        yield replica_watcher
    finally:
        replica_watcher.end()


def count_replicas() -> int:
    """Replicas of the default pool that run."""
    application_status = ray.serve.status().applications[APPLICATION]
    return int(application_status.deployments[DEFAULT_POOL].replica_states.get("RUNNING", 0))


def _run_load_phases(
    url: str, replica_watcher: ReplicaCountWatcher, most: int, seconds: float
) -> list[dict[str, Any]]:
    """One replica, more and more, N, fewer, and one again.

    raises: CapacityError if replicas neither come nor go while load does
    """
    one_caller_record = run_callers(url, seconds, "--callers", "1")
    one_caller_rate = one_caller_record["images_per_s"]
    cases = [{"phase": "one caller", **one_caller_record, "replicas": [replica_watcher.now] * 2}]

    def run_load_phase(phase: str, share: float) -> None:
        replicas_before = replica_watcher.now
        phase_record = run_callers(url, seconds, "--rate", str(share * one_caller_rate))
        # Arrivals are random: in a short phase not the rate that was asked for.
        offered_rate = round((phase_record["images"] + phase_record["failures"]) / seconds, 4)
        cases.append(
            {
                "phase": phase,
                **phase_record,
                "offered_per_s": offered_rate,
                "replicas": [replicas_before, replica_watcher.now],
            }
        )
        print(cases[-1], file=sys.stderr)

    def run_until_replicas(count: int, phase: str, share: float) -> None:
        for _ in range(MAX_PHASES):
            if replica_watcher.now == count:
                return
            run_load_phase(phase, share)
        if replica_watcher.now != count:
            raise CapacityError(
                f"after {MAX_PHASES} phases of {seconds} s there are {replica_watcher.now} "
                f"replicas, not {count}; is there room for them on the cluster?"
            )

    run_load_phase("one replica", LITTLE)
    run_until_replicas(most, "load rises", max(2.0, MUCH * most))
    run_load_phase(f"{most} replicas", MUCH * most)
    run_until_replicas(1, "load falls", LITTLE / 2)
    run_load_phase("one replica again", LITTLE)
    return cases


def format_table(record: dict[str, Any]) -> str:
    """A row a phase."""
    table_lines = [
        "| phase | replicas | offered images/s | images/s | p50 s | p95 s | failures |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in record["cases"]:
        replicas_before, replicas_after = case["replicas"]
        offered_text = f"{case['offered_per_s']:.2f}" if "offered_per_s" in case else "one by one"
        table_lines.append(
            f"| {case['phase']} | {replicas_before} -> {replicas_after} | {offered_text} "
            f"| {case['images_per_s']:.2f} | {case['p50_s']:.2f} | {case['p95_s']:.2f} "
            f"| {case['failures']} |"
        )
    return "\n".join(table_lines)
