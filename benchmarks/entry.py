"""What Ray Train runs for theme `train`; imports nothing heavy, as its controller loads it too."""

from typing import Any

# ruff: noqa: PLC0415


def train(settings: dict[str, Any]) -> None:
    """The product's worker, with a gate.

    settings: `job` as keywords of Job, and the handle of a `turnstile`
    """
    from benchmarks.gate import Gate
    from dreambooth_ray.training.job import Job
    from dreambooth_ray.training.worker import train_worker

    train_worker(Job(**settings["job"]), [Gate(settings["turnstile"])])
