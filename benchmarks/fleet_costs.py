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

from benchmarks.cluster_cost_plan import Cluster, TrainingWorkload, best_interval_s, expected_job_s
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

    def interpolate_batch_speedup(self, num_subjects: int) -> float:
        """Between two that were measured, by their logarithms; beyond the largest, as that."""
        measured_counts = sorted(self.by_count)
        bounded_subject_count = min(max(num_subjects, measured_counts[0]), measured_counts[-1])
        measured_count_above = next(
            count for count in measured_counts if count >= bounded_subject_count
        )
        measured_count_below = max(
            count for count in measured_counts if count <= bounded_subject_count
        )
        if measured_count_above == measured_count_below:
            return self.by_count[measured_count_above]
        interpolation_weight = math.log(bounded_subject_count / measured_count_below) / math.log(
            measured_count_above / measured_count_below
        )
        return float(
            self.by_count[measured_count_below] ** (1 - interpolation_weight)
            * self.by_count[measured_count_above] ** interpolation_weight
        )

    def describe_evidence(self, num_subjects: int) -> str:
        """Whether a gain was measured."""
        measured_counts = sorted(self.by_count)
        if num_subjects in self.by_count:
            return f"measured: {self.source}"
        if num_subjects > measured_counts[-1]:
            return f"assumed: as with {measured_counts[-1]} subjects, the most that were measured"
        return f"between those measured with {measured_counts} subjects: {self.source}"


def read_batch_gain(results: Path) -> BatchGain:
    """As theme `fleet` has it on record.

    raises: ConfigError if there is no record of whole jobs
    """
    record_file = results / "fleet.json"
    try:
        record = json.loads(record_file.read_text())
        cases_by_name = {case["case"]: case for case in record["cases"]}
        job_settings = record["configuration"]["jobs"]
        step_cases = {
            int(name.split()[1]): case
            for name, case in cases_by_name.items()
            if name.startswith("steps, ")
        }
        whole_job_case = cases_by_name[
            f"{job_settings['subjects']} subjects of {job_settings['steps']} steps"
        ]
        subjects_per_worker = job_settings["subjects"] // job_settings["workers"]
        worker_s_per_subject = job_settings["workers"] / whole_job_case["ours"]["median"]
        steps_s_per_subject = (
            job_settings["steps"] / step_cases[subjects_per_worker]["ours"]["median"]
        )
        step_s = 1 / step_cases[1]["theirs"]["median"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"--slots: {record_file} holds no measured batches and whole jobs ({error!r}); measure "
            f"them with `dreambooth bench fleet --json {record_file}`"
        ) from error
    device_name = record["conditions"]["device"]
    measurement_source = (
        f"{record['setting']['model']}, {device_name}, commit {record['conditions']['commit'][:7]}"
    )
    speedup_by_subject_count = {
        count: case["ratio"]["median"] for count, case in step_cases.items()
    }
    unsteady_reason = str(whole_job_case.get("unsteady", ""))
    return BatchGain(
        speedup_by_subject_count,
        step_s,
        max(0.0, worker_s_per_subject - steps_s_per_subject),
        measurement_source,
        unsteady_reason,
    )


def estimate_fleet_costs(
    workload: TrainingWorkload,
    cluster: Cluster,
    slots: int,
    gain: BatchGain,
    subject_s: float | None,
) -> dict[str, Any]:
    """Subjects in batches of `slots` on each GPU: time and cost on 1, 8, 1,000 and the cluster's.

    subject_s: instead of the measured one
    raises: ConfigError if failures never let a job end
    """
    if subject_s is not None and not 0 <= subject_s < math.inf:
        raise ConfigError(f"--subject-s={subject_s} must be a number of seconds, at least 0")
    gpu_counts = sorted({*GPU_COUNTS, cluster.gpus})
    subject_overhead_s = gain.subject_s if subject_s is None else subject_s
    return {
        "slots": slots,
        "gain": round(gain.interpolate_batch_speedup(slots), 3),
        "subject_s": round(subject_overhead_s, 2),
        "assumptions": _list_assumptions(slots, gain, subject_s),
        "options": [
            _make_fleet_option(workload, cluster, k, slots, gain, subject_overhead_s)
            for k in gpu_counts
        ],
    }


def _list_assumptions(slots: int, gain: BatchGain, subject_s: float | None) -> dict[str, str]:
    """By the number's name: measured, and where, or assumed."""
    return {
        "gain": gain.describe_evidence(slots)
        + "; that other devices and models gain as much is assumed",
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


def _make_fleet_option(
    workload: TrainingWorkload,
    cluster: Cluster,
    num_gpus: int,
    slots: int,
    gain: BatchGain,
    subject_overhead_s: float,
) -> dict[str, Any]:
    """Every GPU has a worker, whose batch computes all its slots, taken or not."""
    subjects_per_gpu = math.ceil(workload.subjects / num_gpus)
    num_workers = math.ceil(workload.subjects / subjects_per_gpu)
    num_slots = min(slots, subjects_per_gpu)
    batch_step_s = num_slots * workload.step_s / gain.interpolate_batch_speedup(num_slots)
    steps_s = math.ceil(subjects_per_gpu / num_slots) * workload.steps * batch_step_s
    work_s = steps_s + subjects_per_gpu * subject_overhead_s
    save_s = num_slots * workload.checkpoint_bytes / cluster.link_bytes_s
    interval_s = min(work_s, best_interval_s(save_s, cluster.mtbf_s))
    job_s = expected_job_s(work_s, interval_s, save_s, workload.start_s, cluster.mtbf_s)
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
