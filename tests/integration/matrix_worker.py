"""One training worker that runs rows of the matrix, one after the other, without Ray.

As `python -m tests.integration.matrix_worker RANK WORLD_SIZE FOLDER`: plan.json there has the rows;
the first rank writes what came of each. What Ray does in a run, to start workers, is left out, so
that a row costs seconds; all else is the product's own.
"""

import json
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import distributed

from dreambooth_ray.bundles.bundle import export_bundle
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.evaluation.checkpoint_evaluator import CheckpointEvaluator
from dreambooth_ray.evaluation.checkpoint_follower import CheckpointFollower
from dreambooth_ray.evaluation.checkpoint_sampler import CheckpointSampler, is_sample_due
from dreambooth_ray.evaluation.protocol_scorer import load_checkpoint_protocol
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import worker
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.metrics_log import read_metrics
from dreambooth_ray.training.preemption import PreemptionWatcher
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.worker import train_worker
from dreambooth_ray.training.worker_job import WorkerJob

# Longer than any row; a worker that waits for another one that failed ends with an error.
_TIMEOUT = timedelta(seconds=300)


class _Context:
    """What Ray Train tells a worker."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.get_world_rank = self.get_local_rank = _always(rank)
        self.get_world_size = self.get_local_world_size = _always(world_size)
        self.get_node_rank = _always(0)


def _always(value: int) -> Callable[[], int]:
    return lambda: value


def run_row(config: Config, job: WorkerJob, rank: int) -> dict[str, Any]:
    """Train, take half of it back, resume; what the run then has, on rank 0."""
    run, directory = Store(job.run_uri), Path(job.model_directory)
    train_worker(job)
    curve: list[Any] = []
    if rank == 0:
        curve = read_metrics(run)
        manifest.remove_artifact(run, find_checkpoint(run, 4).name)
    distributed.barrier()
    train_worker(job)
    if rank:
        return {}
    if config.choice.rule == "best":
        protocol = load_checkpoint_protocol(config)
        evaluator = CheckpointEvaluator(job.config, run.uri, (str(directory), ""), protocol, {})
        with CheckpointFollower(run, config.choice, evaluator.evaluate):
            pass
    if config.sample.every and not config.train.holds_unsharded_weights:
        sampler = CheckpointSampler(job.config, run.uri, (str(directory), ""), {}, gpu=False)
        for step in filter(lambda step: is_sample_due(config, step), committed_steps(run)):
            sampler.sample(step)
    export_bundle(config, directory, run, read_run_state(run, config))
    return {"curve": curve, "resumed_curve": read_metrics(run)}


def main(rank: int, world_size: int, folder: Path) -> None:
    """All rows of the plan that have no result yet; ends at the first that fails."""
    torch.set_num_threads(1)
    context: Any = _Context(rank, world_size)
    ray.train.get_context = lambda: context
    ray.train.torch.get_device = lambda: torch.device("cpu")
    worker.PreemptionWatcher = lambda: PreemptionWatcher(lambda: None)
    plan = json.loads((folder / "plan.json").read_text())
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{plan['group']}", rank=rank, world_size=world_size,
        timeout=_TIMEOUT,
    )  # fmt: skip
    for name, settings in plan["rows"].items():
        config = parse_config(plan["recipe"], str(folder), [*settings, f"run_id={name}"])
        job = WorkerJob(
            config=dump_config(config), run_uri=f"{folder}/runs/{name}",
            model_directory=config.model.uri, priors_uri=plan["priors"],
            num_priors=config.prior.num_images,
        )  # fmt: skip
        try:
            result = run_row(config, job, rank)
        except BaseException:
            (folder / f"{name}-{rank}.error").write_text(traceback.format_exc())
            raise
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
