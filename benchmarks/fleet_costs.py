"""What subjects cost that share batches, on GPUs nobody here has, by what theme `fleet` measured.

Measured is how many more steps a batch makes, and what whole jobs took beyond their steps. All
else, and that the same holds on other machines, is assumed; the plan says which is which.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster_plan import Cluster, Workload, best_interval_s, expected_s
from dreambooth_ray.errors import ConfigError

GPU_COUNTS = (1, 8, 1000)


@dataclass(frozen=True)
class BatchGain:
    """Steps of K subjects a second, in one batch, over those of one after another.

    by_count: of each K that was measured; step_s: of one subject alone
    subject_s: of a worker, for a subject, beyond its steps; source: what was measured, and where
    unsteady: why subject_s may be far off, by the record; empty where nothing was odd
    """

    by_count: Mapping[int, float]
    step_s: float
    subject_s: float
    source: str
    unsteady: str = ""

    def estimate(self, num_subjects: int) -> float:
        """Between two that were measured, by their logarithms; beyond the largest, as that."""
        counts = sorted(self.by_count)
        bounded_count = min(max(num_subjects, counts[0]), counts[-1])
        above = next(count for count in counts if count >= bounded_count)
        below = max(count for count in counts if count <= bounded_count)
        if above == below:
            return self.by_count[above]
        share = math.log(bounded_count / below) / math.log(above / below)
        return float(self.by_count[below] ** (1 - share) * self.by_count[above] ** share)

    def describe(self, num_subjects: int) -> str:
        """Whether a gain was measured."""
        counts = sorted(self.by_count)
        if num_subjects in self.by_count:
            return f"measured: {self.source}"
        if num_subjects > counts[-1]:
            return f"assumed: as with {counts[-1]} subjects, the most that were measured"
        return f"between those measured with {counts} subjects: {self.source}"


def read_batch_gain(results: Path) -> BatchGain:
    """As theme `fleet` has it on record.

    raises: ConfigError if there is no record of whole jobs
    """
    file = results / "fleet.json"
    try:
        record = json.loads(file.read_text())
        cases = {case["case"]: case for case in record["cases"]}
        jobs = record["configuration"]["jobs"]
        steps = {
            int(name.split()[1]): case for name, case in cases.items() if name.startswith("steps, ")
        }
        whole_job = cases[f"{jobs['subjects']} subjects of {jobs['steps']} steps"]
        share = jobs["subjects"] // jobs["workers"]
        worker_s = jobs["workers"] / whole_job["ours"]["median"]
        steps_s = jobs["steps"] / steps[share]["ours"]["median"]
        step_s = 1 / steps[1]["theirs"]["median"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"--slots: {file} holds no measured batches and whole jobs ({error!r}); measure them "
            f"with `dreambooth bench fleet --json {file}`"
        ) from error
    device = record["conditions"]["device"]
    source = f"{record['setting']['model']}, {device}, commit {record['conditions']['commit'][:7]}"
    gains = {count: case["ratio"]["median"] for count, case in steps.items()}
    unsteady = str(whole_job.get("unsteady", ""))
    return BatchGain(gains, step_s, max(0.0, worker_s - steps_s), source, unsteady)


def plan_fleet(
    workload: Workload, cluster: Cluster, slots: int, gain: BatchGain, subject_s: float | None
) -> dict[str, Any]:
    """Subjects in batches of `slots` on each GPU: time and cost on 1, 8, 1,000 and the cluster's.

    subject_s: instead of the measured one
    raises: ConfigError if failures never let a job end
    """
    if subject_s is not None and not 0 <= subject_s < math.inf:
        raise ConfigError(f"--subject-s={subject_s} must be a number of seconds, at least 0")
    counts = sorted({*GPU_COUNTS, cluster.gpus})
    own_s = gain.subject_s if subject_s is None else subject_s
    return {
        "slots": slots,
        "gain": round(gain.estimate(slots), 3),
        "subject_s": round(own_s, 2),
        "assumptions": _list_assumptions(slots, gain, subject_s),
        "options": [_make_option(workload, cluster, k, slots, gain, own_s) for k in counts],
    }


def _list_assumptions(slots: int, gain: BatchGain, subject_s: float | None) -> dict[str, str]:
    """By the number's name: measured, and where, or assumed."""
    return {
        "gain": gain.describe(slots) + "; that other devices and models gain as much is assumed",
        "subject_s": (
            f"measured: whole jobs beyond their steps, starts included: {gain.source}"
            f"{f' (unsteady: {gain.unsteady})' if gain.unsteady else ''}; that other machines take "
            "as long is assumed"
            if subject_s is None
            else "given"
        ),
        "gpus": "assumed: workers exchange nothing, so that as many take none of each other's "
        "speed; no more than two on one machine were measured",
        "memory": "assumed: so many slots fit into a GPU's memory",
        "step_s, start_s, checkpoints, failures, price_h": "as of the rest of the plan",
    }


def _make_option(
    workload: Workload, cluster: Cluster, num_gpus: int, slots: int, gain: BatchGain, own_s: float
) -> dict[str, Any]:
    """Every GPU has a worker, whose batch computes all its slots, taken or not."""
    most_subjects = math.ceil(workload.subjects / num_gpus)
    num_workers = math.ceil(workload.subjects / most_subjects)
    num_slots = min(slots, most_subjects)
    batch_step_s = num_slots * workload.step_s / gain.estimate(num_slots)
    steps_s = math.ceil(most_subjects / num_slots) * workload.steps * batch_step_s
    work_s = steps_s + most_subjects * own_s
    save_s = num_slots * workload.checkpoint_bytes / cluster.link_bytes_s
    interval_s = min(work_s, best_interval_s(save_s, cluster.mtbf_s))
    job_s = expected_s(work_s, interval_s, save_s, workload.start_s, cluster.mtbf_s)
    gpu_h = num_workers * job_s / 3600
    return {
        "gpus": num_gpus,
        "workers": num_workers,
        "slots": num_slots,
        "wall_h": round(job_s / 3600, 3),
        "gpu_h": round(gpu_h, 2),
        "subjects_an_hour": round(workload.subjects / (job_s / 3600), 1),
        "share_of_steps": round(steps_s / job_s, 3),
        "cost_a_subject": round(gpu_h * cluster.price_h / workload.subjects, 5),
    }
