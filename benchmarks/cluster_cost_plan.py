"""What a cluster nobody here has would need: time, cost, checkpoint interval, GPUs a subject.

The interval is Young's and Daly's; what it comes to is computed in closed form and checked by a
discrete-event simulation of failures.
"""

import json
import math
import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError

SIMULATED = 400
# Pieces between checkpoints that all simulated jobs of an option may have: some seconds.
_MOST_PIECES = 1_000_000
# A job that takes so many times its work is never done between two failures.
_MOST_STRETCH = 1000
GPU_COUNTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class TrainingWorkload:
    """Training steps of many subjects.

    step_s:     of one GPU; start_s: from submission, or a failure, to the next step
    efficiency: what is kept of the speed at each doubling of a subject's GPUs
    """

    subjects: int
    steps: int
    step_s: float
    start_s: float
    checkpoint_bytes: float
    efficiency: float

    def __post_init__(self) -> None:
        """raises ConfigError naming the field."""
        if not 0 < self.efficiency <= 1:
            raise ConfigError(f"--efficiency={self.efficiency} is not above 0 and at most 1")
        _check_positive(self, ("step_s", "start_s", "checkpoint_bytes"))

    def estimate_compute_s(self, gpus: int) -> float:
        """Seconds of steps of one subject on some GPUs, without failures."""
        return float(self.steps * self.step_s / (gpus * self.efficiency ** math.log2(gpus)))


@dataclass(frozen=True)
class Cluster:
    """link_bytes_s: of one job to storage; mtbf_s: of one GPU; price_h: of a GPU's hour."""

    gpus: int
    link_bytes_s: float
    mtbf_s: float
    price_h: float

    def __post_init__(self) -> None:
        """raises ConfigError naming the field."""
        _check_positive(self, ("link_bytes_s", "mtbf_s", "price_h"))


def _check_positive(record: TrainingWorkload | Cluster, names: Iterable[str]) -> None:
    for name in names:
        if not 0 < getattr(record, name) < math.inf:
            raise ConfigError(f"{name}={getattr(record, name)} must be a number above 0")


def read_measured_step_s(results: Path) -> tuple[float, str]:
    """Seconds of a training step as theme `train` has them on record, and of what.

    raises: ConfigError if there is no record
    """
    record_file = results / "train.json"
    if not record_file.is_file():
        raise ConfigError(
            f"no --step-s, and {record_file} holds no measured one; give seconds of a step, or "
            f"measure with `dreambooth bench train --json {record_file}`"
        )
    record = json.loads(record_file.read_text())
    case, run_config = record["cases"][0], record["configuration"]["run"]
    # A photograph and a class image each.
    images_per_step = 2 * run_config["train"]["batch_size"]
    measurement_source = (
        f"{case['case']}, {record['setting']['model']}, {record['conditions']['device']}"
    )
    return images_per_step / case["ours"]["median"], measurement_source


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints that lose least.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart
    dumps", eq. 37; its first term is Young's of 1974.
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    save_to_mtbf_ratio = save_s / (2 * mtbf_s)
    return (
        math.sqrt(2 * save_s * mtbf_s)
        * (1 + math.sqrt(save_to_mtbf_ratio) / 3 + save_to_mtbf_ratio / 9)
        - save_s
    )


def expected_job_s(work_s: float, interval_s: float, save_s: float, start_s: float, mtbf_s: float
) -> float:  # fmt: skip
    """Wall time of a job with exponential failures, the start included.

    Source: Daly 2006, eq. 13: M e^(R/M) (e^((tau + delta)/M) - 1) T/tau.
    raises: ConfigError if failures never let it end
    """
    num_intervals = work_s / interval_s
    try:
        retry_factor = math.expm1((interval_s + save_s) / mtbf_s)
        job_s = start_s + mtbf_s * math.exp(start_s / mtbf_s) * retry_factor * num_intervals
    except OverflowError:
        job_s = math.inf
    if job_s > _MOST_STRETCH * (start_s + work_s):
        raise ConfigError(
            f"--mtbf-h={mtbf_s / 3600:.3g} of a job's GPUs: with {start_s:g} s of a start and "
            f"{save_s:.3g} s of a checkpoint no job ends between failures; correct the three"
        )
    return job_s


def simulate_mean_job_s(
    work_s: float, interval_s: float, save_s: float, start_s: float, mtbf_s: float, seed: int
) -> float:
    """Mean wall time of `SIMULATED` jobs, or as many as a few seconds allow, event by event."""
    rng = random.Random(seed)
    failure_gaps_s = iter(lambda: rng.expovariate(1 / mtbf_s), None)
    num_simulated_jobs = max(1, min(SIMULATED, int(_MOST_PIECES * interval_s / work_s)))
    job_times_s = (
        simulate_job_s(work_s, interval_s, save_s, start_s, failure_gaps_s, start_s)
        for _ in range(num_simulated_jobs)
    )
    return sum(job_times_s) / num_simulated_jobs


def simulate_job_s(
    work_s: float, interval_s: float, save_s: float, start_s: float, failures_s: Iterator[float],
    first_start_s: float,
) -> float:  # fmt: skip
    """Wall time of one job; each failure in seconds after the one before, none after the last."""
    import simpy  # noqa: PLC0415  comes with the extra alone

    def simulate_job_events(simulation: Any) -> Generator[Any, Any, None]:
        finished_work_s, next_failure_s, startup_s = 0.0, next(failures_s, math.inf), first_start_s
        while True:
            interval_work_s = min(interval_s, work_s - finished_work_s)
            attempt_s = startup_s + interval_work_s + save_s
            if next_failure_s < attempt_s:
                yield simulation.timeout(next_failure_s)
                next_failure_s, startup_s = next(failures_s, math.inf), start_s
                continue
            yield simulation.timeout(attempt_s)
            next_failure_s, startup_s, finished_work_s = (
                next_failure_s - attempt_s,
                0.0,
                finished_work_s + interval_work_s,
            )
            if finished_work_s >= work_s * (1 - 1e-12):
                return

    simulation_env = simpy.Environment()
    simulation_env.run(simulation_env.process(simulate_job_events(simulation_env)))
    return float(simulation_env.now)


def plan_gpus_per_subject(
    workload: TrainingWorkload, cluster: Cluster, seed: int
) -> dict[str, Any]:
    """The number of GPUs a subject that ends soonest, and what all of them cost.

    Left out are numbers of GPUs that more of them only make slower: their steps take longer than
    those of fewer, or their failures never let a job end.
    raises: ConfigError if failures never let a job of one GPU end
    """
    plan_options = [_make_plan_option(workload, cluster, 1, seed)]
    for num_gpus in GPU_COUNTS[1:]:
        if num_gpus > cluster.gpus or workload.estimate_compute_s(
            num_gpus
        ) >= workload.estimate_compute_s(1):
            continue
        try:
            plan_options.append(_make_plan_option(workload, cluster, num_gpus, seed))
        except ConfigError:
            break
    return {
        "work": asdict(workload), "cluster": asdict(cluster),
        "best": min(plan_options, key=lambda o: (float(o["wall_h"]), float(o["cost"]))),
        "options": plan_options,
    }  # fmt: skip


def _make_plan_option(
    workload: TrainingWorkload, cluster: Cluster, num_gpus: int, seed: int
) -> dict[str, Any]:
    save_s, mtbf_s = workload.checkpoint_bytes / cluster.link_bytes_s, cluster.mtbf_s / num_gpus
    compute_s = workload.estimate_compute_s(num_gpus)
    interval_s = min(compute_s, best_interval_s(save_s, mtbf_s))
    job_s = expected_job_s(compute_s, interval_s, save_s, workload.start_s, mtbf_s)
    simulated_job_s = simulate_mean_job_s(
        compute_s, interval_s, save_s, workload.start_s, mtbf_s, seed
    )
    num_job_rounds = math.ceil(workload.subjects / (cluster.gpus // num_gpus))
    gpu_h = workload.subjects * num_gpus * job_s / 3600
    return {
        "gpus_a_subject": num_gpus,
        "checkpoint_interval_s": round(interval_s, 1),
        "checkpoint_every_steps": max(1, round(interval_s / compute_s * workload.steps)),
        "job_s": round(job_s, 1),
        "job_s_simulated": round(simulated_job_s, 1),
        "share_of_compute": round(compute_s / job_s, 4),
        "wall_h": round(num_job_rounds * job_s / 3600, 2),
        "gpu_h": round(gpu_h, 1),
        "cost": round(gpu_h * cluster.price_h, 2),
    }
