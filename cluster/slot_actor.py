"""A worker that trains subjects in slots, as an actor: its imports are loaded there alone."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dreambooth_ray.imports import large_imports
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.slots.slot_worker import SlotWorker, SubjectEvent


class SlotActor:
    """Subjects are handed in by one thread while another trains. Give it two threads."""

    def __init__(self, num_slots: int, rank: int) -> None:
        """rank: the largest there is room for"""
        self._num_slots, self._rank = num_slots, rank
        self._lock = threading.Lock()
        self._worker: SlotWorker | None = None
        self._early_jobs: list[WorkerJob | None] = []

    def run(self, job: WorkerJob, gpu: bool) -> "Iterator[SubjectEvent]":
        """Load the model of a job, train what is handed in, and say what becomes of each."""
        with large_imports():
            import torch  # noqa: PLC0415

            from dreambooth_ray.bundles.worker_export import export_from_parts  # noqa: PLC0415
            from dreambooth_ray.training.slots.slot_worker import SlotWorker  # noqa: PLC0415

        device = torch.device("cuda" if gpu else "cpu")
        worker = SlotWorker(job, self._num_slots, self._rank, export_from_parts, device)
        with self._lock:
            self._worker = worker
            for early_job in self._early_jobs:
                _hand_in(worker, early_job)
        yield from worker.run()

    def add(self, job: WorkerJob | None) -> None:
        """Hand in a subject's run; None: no more come."""
        with self._lock:
            if self._worker is None:
                self._early_jobs.append(job)
            else:
                _hand_in(self._worker, job)


def _hand_in(worker: "SlotWorker", job: WorkerJob | None) -> None:
    if job is None:
        worker.close()
    else:
        worker.add(job)
