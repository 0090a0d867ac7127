"""What Ray Train runs for theme `train`; imports nothing heavy, as its controller loads it too."""

from typing import Any

# ruff: noqa: PLC0415


def train(settings: dict[str, Any]) -> None:
    """The product's worker, with a StepGate.

    settings: `job` as keywords of WorkerJob, and `gate_actor`, the handle of a StepGateActor
    """
    from benchmarks.step_gate import StepGate
    from dreambooth_ray.training.worker import train_worker
    from dreambooth_ray.training.worker_job import WorkerJob

    train_worker(WorkerJob(**settings["job"]), [StepGate(settings["gate_actor"])])
