"""A pool of replicas as the gateway sees it: its desk, its reports, and drawing with one retry."""

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
from serve.admission import AdmissionController, Reservation
from serve.api_errors import busy
from serve.replica_messages import Artifact, Drawing, Event, Failed, Finished, Progress, Report

_LOG = logging.getLogger("dreambooth.serve")
_POLL_S = 1.0
_POLL_TIMEOUT_S = 5.0
# The router hears of a death a moment after its callers: at once, it would ask the dead again.
_AGAIN_S = 1.0
_DEAD = (RayActorError, ReplicaUnavailableError, RequestCancelledError)


class ReplicaPool:
    """Replicas of one deployment."""

    def __init__(self, name: str, handle: Any, config: ServeConfig) -> None:
        """handle: ray.serve.handle.DeploymentHandle of serve.replica.Replica"""
        self.name, self._handle = name, handle
        # Gateways share the replicas' places.
        share = -(-config.replicas.batch // config.gateways)
        self.desk = AdmissionController(share, config.limits.open_images)
        self.reports: list[Report] = []
        self.has_drawn = False
        self.retries = 0

    async def watch(self) -> None:
        """Ask the replicas how they are, for as long as the process lives."""
        while True:
            await self.look()
            await asyncio.sleep(_POLL_S)

    async def look(self) -> None:
        """Ask the replicas once, and tell them their share of what waits here."""
        share = self.desk.waiting_steps // max(1, len(self.reports))
        try:
            answers = self._handle.broadcast("report", share)
            self.reports = await asyncio.wait_for(answers.results_async(), _POLL_TIMEOUT_S)
        except DeploymentUnavailableError:
            self.reports = []
        except (TimeoutError, RayActorError, RayTaskError, RuntimeError) as error:
            # A replica died while it was asked; the next look finds the others.
            _LOG.info("pool.look_failed", extra={"pool": self.name, "error": type(error).__name__})
            return
        speeds = [r.steps_per_s for r in self.reports]
        self.desk.set_replicas(len(speeds), sum(speeds) / len(speeds) if speeds else 0.0)
        self.has_drawn = self.has_drawn or bool(speeds)

    async def draw(
        self, artifact: Artifact, drawing: Drawing, turn: Reservation
    ) -> AsyncIterator[Event]:
        """Events of one image, whose turn it is.

        If the replica dies, once more on another: a drawing is a function of its request.
        raises: Refusal 503
        """
        for attempt in range(2):
            stream = self._handle.options(stream=True).draw.remote(artifact, drawing)
            ended = False
            try:
                async for event in stream:
                    if isinstance(event, Progress):
                        turn.remaining = event.total - event.step
                    ended = isinstance(event, Finished | Failed)
                    yield event
                if ended:
                    return
            except BackPressureError as error:
                raise busy("the replicas' queues are full; come again", 1.0) from error
            except DeploymentUnavailableError as error:
                raise busy("no replica can be started; come again later", 30.0) from error
            except _DEAD as error:
                ended = True
                if attempt:
                    text = "the replica that drew this died, and so did the next; come again"
                    raise busy(text, 5.0, "replica_died") from error
                self.retries += 1
                turn.remaining = drawing.steps
                await asyncio.sleep(_AGAIN_S)
                _LOG.warning("pool.retry", extra={"pool": self.name, "error": type(error).__name__})
            finally:
                if not ended:
                    stream.cancel()
        raise busy("the replica went away in the middle; come again", 5.0, "replica_died")
