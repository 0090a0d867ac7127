"""A worker that trains subjects in slots, as an actor: its imports are loaded there alone."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray

from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.errors import PERMANENT, DreamBoothError, describe_error
from dreambooth_ray.imports import pause_garbage_collection
from dreambooth_ray.training.worker_job import WorkerJob

if TYPE_CHECKING:
    from dreambooth_ray.training.slots.slot_worker import SlotWorker, SubjectEvent


# Between looks at the queue while workers say nothing.
_WAIT_S = 2.0


class WorkerLostError(DreamBoothError):
    """A worker's process or host is gone."""


class SlotActor:
    """Subjects are handed in by one thread while another trains. Give it two threads."""

    def __init__(self, num_slots: int, rank: int) -> None:
        """rank: the largest there is room for"""
        self._num_slots, self._rank = num_slots, rank
        self._worker: SlotWorker | None = None

    def run(self, job: WorkerJob, gpu: bool) -> "Iterator[SubjectEvent]":
        """Load the model of a job, be ready, train what is handed in, and say what becomes of it.

        Nothing may be handed in before: a process that finds no room would keep it for ever.
        """
        with pause_garbage_collection():
            import torch  # noqa: PLC0415

            from dreambooth_ray.bundles.worker_export import export_with_loaded_components  # noqa: PLC0415
            from dreambooth_ray.training.slots.slot_worker import (  # noqa: PLC0415
                SlotWorker,
                SubjectEvent,
            )

        device = torch.device("cuda" if gpu else "cpu")
        slot_worker = SlotWorker(
            job, self._num_slots, self._rank, export_with_loaded_components, device
        )
        self._worker = slot_worker
        yield SubjectEvent("", "ready")
        yield from slot_worker.run()

    def add(self, job: WorkerJob | None) -> None:
        """Hand in a subject's run; None: no more come."""
        assert self._worker is not None, "it is handed nothing before it says that it is ready"
        if job is None:
            self._worker.close()
        else:
            self._worker.add(job)


class _SlotActorHandle:
    """A SlotActor, from the process that hands subjects out."""

    def __init__(self, job: WorkerJob, num_slots: int, rank: int, gpu: bool) -> None:
        self.num_slots = num_slots
        actor_class = ray.remote(SlotActor).options(
            num_cpus=1,
            num_gpus=1 if gpu else 0,
            # One trains, and one takes in what is handed in.
            max_concurrency=2,
            runtime_env=worker_environment(),
        )
        self._actor = actor_class.remote(num_slots, rank)
        self._started = self._actor.__ray_ready__.remote()
        self.events = self._actor.run.options(num_returns="streaming").remote(job, gpu)

    @property
    def has_started(self) -> bool:
        return bool(ray.wait([self._started], timeout=0)[0])

    def add(self, job: WorkerJob | None) -> None:
        self._actor.add.remote(job)

    def kill(self) -> None:
        ray.kill(self._actor)

    def read_event(self) -> "SubjectEvent | None":
        try:
            event: SubjectEvent = ray.get(next(self.events))
        except StopIteration:
            return None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, PERMANENT):
                raise cause from None
            # Of a device or of storage, perhaps: the next may fare better.
            raise WorkerLostError(describe_error(cause)) from error
        except ray.exceptions.RayError as error:
            raise WorkerLostError(f"{type(error).__name__}: its process or host is gone") from error
        return event


def make_ray_worker_functions(
    job: WorkerJob, rank: int, gpu: bool
) -> tuple[Callable[[int], _SlotActorHandle], Callable[[list[Any]], Any]]:
    """`start` and `wait` of a SlotFleet, by Ray actors. job: any of the group"""

    def start_worker(num_slots: int) -> _SlotActorHandle:
        return _SlotActorHandle(job, num_slots, rank, gpu)

    def wait_for_event(workers: list[_SlotActorHandle]) -> _SlotActorHandle | None:
        event_streams = [worker.events for worker in workers]
        ready_streams, _ = ray.wait(event_streams, num_returns=1, timeout=_WAIT_S)
        return next(
            (worker for worker in workers if ready_streams and worker.events is ready_streams[0]),
            None,
        )

    return start_worker, wait_for_event
