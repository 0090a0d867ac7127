"""Training on 1 to N workers of a cluster: images a second of each, and what scaling keeps.

Each worker has the same batch (weak scaling). The runs are those of `dreambooth train`, one after
the other, each timed once it has started, in turns of some steps.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cluster_throughput import ClusterSetting
from benchmarks.gated_runs import dump_portable_config, make_config, start_gated_run
from benchmarks.measure import compute_quantiles
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import upload_photographs
from dreambooth_ray.storage.store import Store

# Pairs of a photograph and a class image that a worker's step sees.
PAIRS = 4


def measure(setting: ClusterSetting, counts: tuple[int, ...]) -> dict[str, Any]:
    """A case for each number of workers."""
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        for num_workers in counts:
            config = _make_config(Path(temp_folder), setting, num_workers, PAIRS * max(counts))
            cases.append(_measure_workers(config, setting, num_workers))
            median_rate = cases[-1]["images_per_s"]["median"]
            print(f"workers: {num_workers}, images/s: {median_rate:.2f}", file=sys.stderr)
    add_efficiency(cases)
    return {
        "cases": cases,
        "configuration": {
            "device": setting.device, "pairs_a_worker": PAIRS,
            "steps_a_turn": steps_a_turn(setting), "run": dump_portable_config(config),
        },
    }  # fmt: skip


def steps_a_turn(setting: ClusterSetting) -> int:
    """Of every run."""
    return setting.pick(3, 20)


def _make_config(
    folder: Path, setting: ClusterSetting, num_workers: int, num_class_images: int
) -> Config:
    """A run whose photographs every host can read."""
    theme_setting = BenchmarkSettings(setting.model, (num_workers,), setting.profile)
    local_config = make_config(folder, theme_setting, "local", 1, num_class_images=num_class_images)
    photos_uri = upload_photographs(Path(local_config.subject.photos), Store(setting.storage))
    # Its folder is new each time: runs of one name would go on where they stood.
    run_id = f"bench-{folder.name.rpartition('-')[2].strip('_')}-{num_workers}"
    return make_config(
        folder, theme_setting, run_id, num_workers, f"subject.photos={photos_uri}",
        f"storage.uri={setting.storage}", f"cluster.address={setting.address}",
        f"cluster.gpus={str(setting.gpus).lower()}", f"train.batch_size={PAIRS * num_workers}",
        f"train.precision={'bf16-mixed' if setting.gpus else 32}",
        num_class_images=num_class_images,
    )  # fmt: skip


def _measure_workers(config: Config, setting: ClusterSetting, num_workers: int) -> dict[str, Any]:
    num_steps = steps_a_turn(setting)
    with start_gated_run(config) as gated_run:
        gated_run.wait_until_ready()
        gated_run.run_steps(setting.pick(2, 10))
        turn_times_s = [gated_run.run_steps(num_steps).wall_s for _ in range(setting.pick(3, 7))]
    num_images = 2 * PAIRS * num_workers * num_steps
    rate_quantiles = compute_quantiles([num_images / seconds for seconds in turn_times_s])
    return {
        "workers": num_workers,
        "images_per_s": rate_quantiles,
        "images_per_s_worker": round(rate_quantiles["median"] / num_workers, 4),
        "step_s": compute_quantiles([seconds / num_steps for seconds in turn_times_s]),
    }


def add_efficiency(cases: list[dict[str, Any]]) -> None:
    """Images a second of a worker, as a share of what one worker alone has; in place."""
    (one_worker_case,) = (case for case in cases if case["workers"] == 1)
    for case in cases:
        case["efficiency"] = round(
            case["images_per_s_worker"] / one_worker_case["images_per_s_worker"], 3
        )


def format_table(record: dict[str, Any]) -> str:
    """A row a number of workers."""
    device = record["configuration"]["device"]
    table_lines = [
        f"| workers | images/s (p5 to p95) | images/s a {device} | efficiency | s a step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in record["cases"]:
        rate_quantiles = case["images_per_s"]
        table_lines.append(
            f"| {case['workers']} | {rate_quantiles['median']:.2f} "
            f"({rate_quantiles['p5']:.2f} to {rate_quantiles['p95']:.2f}) "
            f"| {case['images_per_s_worker']:.2f} | {case['efficiency']:.0%} "
            f"| {case['step_s']['median']:.3f} |"
        )
    return "\n".join(table_lines)
