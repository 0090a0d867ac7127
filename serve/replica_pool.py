"""A pool of replicas as the gateway sees it: admission, status, and sampling with one retry."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.queue.denoising_step_costs import estimate_denoising_step_cost
from serve.admission import AdmissionController, Reservation
from serve.api_errors import busy_error
from serve.replica_messages import (
    Artifact,
    Event,
    Failed,
    Finished,
    ImageSamplingTask,
    ReplicaStatus,
    SamplingProgress,
)

_LOG = logging.getLogger("dreambooth.serve")
_POLL_S = 1.0
_POLL_TIMEOUT_S = 5.0
# The router hears of a death a moment after its callers: at once, it would ask the dead again.
_RETRY_S = 1.0
_DEATH_ERRORS = (RayActorError, ReplicaUnavailableError, RequestCancelledError)


class ReplicaPool:
    """Replicas of one deployment."""

    def __init__(self, name: str, handle: Any, config: ServeConfig) -> None:
        """handle: ray.serve.handle.DeploymentHandle of serve.replica.Replica"""
        self.name, self._handle = name, handle
        # Gateways share the replicas' places.
        places_per_gateway = -(-config.replicas.batch // config.gateways)
        self.admission = AdmissionController(places_per_gateway, config.limits.open_images)
        self.statuses: list[ReplicaStatus] = []
        self.has_been_ready = False
        self.retries = 0

    async def watch_replicas(self) -> None:
        """Poll the replicas, for as long as the process lives."""
        while True:
            await self.poll_replicas()
            await asyncio.sleep(_POLL_S)

    async def poll_replicas(self) -> None:
        """Ask the replicas for their status, and tell them their share of what waits here."""
        backlog_per_replica = self.admission.waiting_steps // max(1, len(self.statuses))
        try:
            status_responses = self._handle.broadcast("report_status", backlog_per_replica)
            async with asyncio.timeout(_POLL_TIMEOUT_S):
                self.statuses = await status_responses.results_async()
        except DeploymentUnavailableError:
            self.statuses = []
        except (TimeoutError, RayActorError, RayTaskError, RuntimeError) as error:
            # A replica died while it was asked; the next poll finds the others.
            _LOG.info("pool.look_failed", extra={"pool": self.name, "error": type(error).__name__})
            return
        replica_speeds = [r.steps_per_s for r in self.statuses]
        self.admission.set_pool_speed(
            len(replica_speeds),
            sum(replica_speeds) / len(replica_speeds) if replica_speeds else 0.0,
        )
        self.has_been_ready = self.has_been_ready or bool(replica_speeds)

    def relative_step_cost(self, artifact: Artifact, sample_task: ImageSamplingTask) -> float:
        """What a step of this image costs, in those that admission counts in."""
        model_step_costs = [
            model_step_cost for status in self.statuses for model_step_cost in status.models
        ]
        if not model_step_costs:
            return 1.0
        # What is not loaded anywhere is taken for one that is.
        model_step_cost = next(
            (m for m in model_step_costs if artifact.id in m.ids), model_step_costs[0]
        )
        relative_size = sample_task.relative_size(model_step_cost.side_px)
        return model_step_cost.step_cost * estimate_denoising_step_cost(
            relative_size, model_step_cost.costs_by_size
        )

    async def sample(
        self, artifact: Artifact, sample_task: ImageSamplingTask, reservation: Reservation
    ) -> AsyncIterator[Event]:
        """Events of one image that has its reservation.

        If the replica dies, once more on another: an image is a function of its task.
        raises: APIError 503
        """
        for attempt in range(2):
            replica_events = self._handle.options(stream=True).sample.remote(artifact, sample_task)
            has_final_event = False
            try:
                async for event in replica_events:
                    if isinstance(event, SamplingProgress):
                        reservation.set_remaining_steps(event.total - event.step)
                    has_final_event = isinstance(event, Finished | Failed)
                    yield event
                if has_final_event:
                    return
            except BackPressureError as error:
                raise busy_error("the replicas' queues are full; come again", 1.0) from error
            except DeploymentUnavailableError as error:
                raise busy_error("no replica can be started; come again later", 30.0) from error
            except _DEATH_ERRORS as error:
                has_final_event = True
                if attempt:
                    error_message = (
                        "the replica that drew this died, and so did the next; come again"
                    )
                    raise busy_error(error_message, 5.0, "replica_died") from error
                self.retries += 1
                reservation.set_remaining_steps(sample_task.steps)
                await asyncio.sleep(_RETRY_S)
                _LOG.warning("pool.retry", extra={"pool": self.name, "error": type(error).__name__})
            finally:
                if not has_final_event:
                    replica_events.cancel()
        raise busy_error("the replica went away in the middle; come again", 5.0, "replica_died")
