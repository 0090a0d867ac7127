"""A process that draws: engines and their models, told what to do in plain data. No HTTP.

What draws takes seconds to import, and is by the replica itself: who deploys the endpoint has no
use for it.
"""

# ruff: noqa: PLC0415

import asyncio
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import CapacityError, CheckpointError, ConfigError, StorageError
from dreambooth_ray.imports import large_imports
from serve.replica_messages import (
    Artifact,
    Drawing,
    Event,
    Failed,
    Finished,
    Pixels,
    Preview,
    Progress,
    Report,
)

if TYPE_CHECKING:
    from dreambooth_ray.sampling.engine import Engine
    from dreambooth_ray.sampling.request import Request
    from dreambooth_ray.sampling.request_handle import RequestHandle, SampleOutput
    from serve.model_cache import ModelLease

_WARM_UP_STEPS = 3
# A batch so full tells how fast full batches are; each report moves the estimate so far.
_FULL, _LEARNING = 0.75, 0.5


class Replica:
    """One drawing process of a pool. Every public coroutine runs on its event loop."""

    def __init__(self, config: ServeConfig) -> None:
        """Load the first model and draw with it once: after that it can draw."""
        with large_imports():
            import torch

            from serve.model_cache import ModelCache

        self.id = uuid.uuid4().hex[:12]
        self._config = config
        gpus = config.replicas.gpus
        self._device = "cuda" if gpus else "cpu"
        self._dtype = torch.float16 if gpus else torch.float32
        if not gpus:
            torch.set_num_threads(1)
        self._cache = Path(tempfile.mkdtemp(prefix="dreambooth-serve-"))
        self._shelf = ModelCache(
            dict(config.models), config.storage.uri, self._cache, self._open_engine,
            memory_bytes=config.replicas.memory_bytes,
            max_adapters=config.replicas.adapters,
            bytes_per_weight=2 if gpus else 4,
        )  # fmt: skip
        self._steps_done = 0
        self._backlog_steps, self._told_at = 0, 0.0
        self._steps_per_s = self._warm_up()
        self._seen = (time.monotonic(), 0, False)

    def _open_engine(self, directory: Path) -> "Engine":
        from dreambooth_ray.sampling.engine import Engine

        engine = Engine(
            directory,
            max_batch=self._config.replicas.batch,
            device=self._device,
            dtype=self._dtype,
            lives_long=True,
        )
        engine.start()
        return engine

    def _warm_up(self) -> float:
        """Steps a second of a full batch, from one that is drawn now."""
        from dreambooth_ray.sampling.request import Request

        name, uri = next(iter(self._config.models.items()))
        batch = self._config.replicas.batch
        with self._shelf.seat(Artifact(name, uri=uri)) as seat:
            requests = [Request("", k, num_inference_steps=_WARM_UP_STEPS) for k in range(batch)]
            # Once for what is done once, the recording of the forward among it.
            seat.engine.draw(requests)
            started_s = time.monotonic()
            seat.engine.draw(requests)
        return batch * _WARM_UP_STEPS / (time.monotonic() - started_s)

    async def draw(self, artifact: Artifact, drawing: Drawing) -> AsyncIterator[Event]:
        """Events of one image, the last of them Finished or Failed.

        When the caller goes away the image's place is free within one step.
        """
        seats = self._shelf.seat(artifact)
        try:
            seat = await asyncio.to_thread(seats.__enter__)
        except Exception as error:  # told to the gateway, which knows what to answer
            yield _failure(error)
            return
        try:
            async for event in self._events(seat, drawing):
                yield event
        finally:
            seats.__exit__(None, None, None)

    async def _events(self, seat: "ModelLease", drawing: Drawing) -> AsyncIterator[Event]:
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop, told_s = asyncio.get_running_loop(), 0.0

        def put(event: Event | None) -> None:
            with suppress(RuntimeError):  # the loop of a replica that is going away
                loop.call_soon_threadsafe(events.put_nowait, event)

        def on_progress(step: int, total: int) -> None:
            nonlocal told_s
            self._steps_done += 1
            now = time.monotonic()
            if now - told_s >= drawing.tell_every_s:
                told_s = now
                put(Progress(step, total))

        def on_preview(step: int, image: Image.Image) -> None:
            put(Preview(step, Pixels.of(image)))

        try:
            ticket = seat.engine.submit(
                _request(drawing, seat.adapter),
                on_progress=on_progress,
                on_preview=on_preview if drawing.num_previews else None,
                num_previews=drawing.num_previews,
            )
        except Exception as error:  # as above
            yield _failure(error)
            return
        try:
            ticket.future.add_done_callback(lambda _: put(None))
            while (event := await events.get()) is not None:
                yield event
            yield _result(ticket, seat)
        finally:
            ticket.cancel()

    async def report(self, backlog_steps: int = 0) -> Report:
        """How it goes. backlog_steps: this replica's share of what waits at the gateway."""
        engines, now = self._shelf.engines, time.monotonic()
        self._learn_speed(now, sum(e.num_active for e in engines))
        self._backlog_steps, self._told_at = backlog_steps, now
        return Report(
            replica=self.id,
            steps_per_s=self._steps_per_s,
            active=sum(e.num_active for e in engines),
            waiting=sum(e.num_waiting for e in engines),
            remaining_steps=sum(e.remaining_steps for e in engines),
            steps_done=self._steps_done,
            loaded_bytes=self._shelf.size_bytes,
            loaded=self._shelf.loaded,
        )

    def _learn_speed(self, now: float, active: int) -> None:
        """Steps a second as they are since the last report, if the batch was full then and now."""
        full = active >= _FULL * self._config.replicas.batch
        then, steps, was_full = self._seen
        self._seen = (now, self._steps_done, full)
        if full and was_full and now > then:
            rate = (self._steps_done - steps) / (now - then)
            self._steps_per_s += _LEARNING * (rate - self._steps_per_s)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy reads: steps to do, waiting ones included."""
        # A gateway that has gone quiet has no backlog.
        backlog = self._backlog_steps if time.monotonic() - self._told_at < 10 else 0
        remaining = sum(e.remaining_steps for e in self._shelf.engines)
        return {"remaining_steps": float(remaining + backlog)}

    def process_id(self) -> int:
        """Of the process, for tests that end it."""
        return os.getpid()

    def __del__(self) -> None:
        shelf = getattr(self, "_shelf", None)
        if shelf is not None:
            shelf.close()
            shutil.rmtree(self._cache, ignore_errors=True)


def _request(drawing: Drawing, adapter: str | None) -> "Request":
    from dreambooth_ray.sampling.request import Request

    return Request(
        drawing.prompt,
        drawing.seed,
        negative_prompt=drawing.negative_prompt,
        num_inference_steps=drawing.num_inference_steps,
        guidance_scale=drawing.guidance_scale,
        width_px=drawing.width_px,
        height_px=drawing.height_px,
        solver=drawing.solver,
        image=drawing.image.image() if drawing.image else None,
        mask=drawing.mask.image() if drawing.mask else None,
        strength=drawing.strength,
        adapter=adapter,
    )


def _result(ticket: "RequestHandle", seat: "ModelLease") -> Event:
    if ticket.future.cancelled():
        return Failed("internal", "the replica is closing; ask again")
    error = ticket.future.exception()
    if error is not None:
        return _failure(error)
    drawn: SampleOutput = ticket.future.result()
    return Finished(Pixels.of(drawn.image), seat.weights_sha256, seat.base_sha256)


def _failure(error: BaseException) -> Failed:
    kinds = {ConfigError: "config", CapacityError: "capacity", CheckpointError: "damaged"}
    for kind, name in kinds.items():
        if isinstance(error, kind):
            return Failed(name, str(error))
    if isinstance(error, StorageError | OSError):
        return Failed("capacity", f"storage can't be read: {type(error).__name__}; ask again")
    return Failed("internal", type(error).__name__)
