"""A process that samples: engines and their models; its messages are plain data. No HTTP.

What samples takes seconds to import. The replica itself imports it: the process that deploys the
endpoint does not need it.
"""

# ruff: noqa: PLC0415

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import CapacityError, CheckpointError, ConfigError, StorageError
from dreambooth_ray.imports import pause_garbage_collection
from dreambooth_ray.storage.scratch import ScratchFolder
from serve.replica_messages import (
    Artifact,
    Event,
    Failed,
    Finished,
    ImageSamplingTask,
    ModelStepCost,
    Pixels,
    Preview,
    ReplicaStatus,
    SamplingProgress,
)

if TYPE_CHECKING:
    from dreambooth_ray.config.adapter_mix import AdapterMix
    from dreambooth_ray.sampling.engine import Engine
    from dreambooth_ray.sampling.request import Request
    from dreambooth_ray.sampling.request_handle import RequestHandle, SampleOutput
    from serve.loaded_model import ModelLease

_WARM_UP_STEPS = 3
# So full a batch counts as full; each report moves the estimate of speed by this weight.
_FULL_FRACTION, _SPEED_UPDATE_WEIGHT = 0.75, 0.5


class Replica:
    """One sampling process of a pool. Every public coroutine runs on its event loop."""

    def __init__(self, config: ServeConfig) -> None:
        """Load the first model and sample with it once: after that the replica is ready."""
        with pause_garbage_collection():
            import torch

            from dreambooth_ray.models.weight_cache import set_model_cache_limit
            from serve.adapter_cache import AdapterCache
            from serve.allowed_adapters import AdapterFolder
            from serve.model_cache import ModelCache

        self.id = uuid.uuid4().hex[:12]
        self._config = config
        uses_gpu = config.replicas.gpus
        self._device = "cuda" if uses_gpu else "cpu"
        if not uses_gpu:
            torch.set_num_threads(1)
        set_model_cache_limit(config.storage.model_cache_gb)
        self._cache = ScratchFolder(f"serve-{self.id}", config.storage.scratch)
        self._model_cache = ModelCache(
            dict(config.models), config.storage.uri, self._cache.path, self._open_engine,
            memory_bytes=config.replicas.memory_bytes,
            adapters=AdapterCache(config.replicas.adapters, config.replicas.adapter_bytes),
            folder=AdapterFolder(config.adapters.folder, config.refresh_s),
            bytes_per_weight=2 if uses_gpu else 4,
            shares_models=config.cluster.address is not None,
        )  # fmt: skip
        self._steps_done = 0.0
        self._backlog_steps, self._backlog_time_s = 0, 0.0
        self._steps_per_s = self._benchmark_full_batch()
        self._last_report = (time.monotonic(), 0.0, False)

    def _open_engine(self, directory: Path) -> "Engine":
        from dreambooth_ray.sampling.engine import Engine

        engine = Engine(
            directory,
            max_batch=self._config.replicas.batch,
            device=self._device,
            lives_long=True,
        )
        engine.start()
        return engine

    def _benchmark_full_batch(self) -> float:
        """Steps a second of a full batch, from one that is sampled now."""
        from dreambooth_ray.sampling.request import Request

        model_id, model_uri = next(iter(self._config.models.items()))
        batch_size = self._config.replicas.batch
        with self._model_cache.lease(Artifact(model_id, uri=model_uri)) as lease:
            requests = [
                Request("", k, num_inference_steps=_WARM_UP_STEPS) for k in range(batch_size)
            ]
            # Once for what is done once, such as tracing the forward.
            lease.engine.sample(requests)
            started_s = time.monotonic()
            lease.engine.sample(requests)
        return batch_size * _WARM_UP_STEPS / (time.monotonic() - started_s)

    async def sample(
        self, artifact: Artifact, sample_task: ImageSamplingTask
    ) -> AsyncIterator[Event]:
        """Events of one image, the last of them Finished or Failed.

        When the caller goes away the image's place is free within one step.
        """
        with ExitStack() as stack:
            lease_context = self._model_cache.lease(artifact, sample_task.adapters)
            try:
                # In a thread: it may load the model, or wait for room.
                lease = await asyncio.to_thread(stack.enter_context, lease_context)
            except Exception as error:  # told to the gateway, which knows what to answer
                yield _build_failed_event(error)
                return
            async for event in self._stream_events(lease, sample_task):
                yield event

    async def _stream_events(
        self, lease: "ModelLease", sample_task: ImageSamplingTask
    ) -> AsyncIterator[Event]:
        image_events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop, last_progress_s = asyncio.get_running_loop(), 0.0
        model_side_px = lease.engine.model_side_px
        step_cost = self._relative_step_cost(lease.engine) * lease.engine.step_costs.cost(
            sample_task.relative_size(model_side_px)
        )

        def put_event(event: Event | None) -> None:
            with suppress(RuntimeError):  # the loop of a replica that is going away
                loop.call_soon_threadsafe(image_events.put_nowait, event)

        def on_progress(step: int, total: int) -> None:
            nonlocal last_progress_s
            self._steps_done += step_cost
            now_s = time.monotonic()
            if now_s - last_progress_s >= sample_task.progress_interval_s:
                last_progress_s = now_s
                put_event(SamplingProgress(step, total))

        def on_preview(step: int, image: Image.Image) -> None:
            put_event(Preview(step, Pixels.from_pil_image(image)))

        try:
            request_handle = lease.engine.submit(
                _build_request(sample_task, lease.adapters),
                on_progress=on_progress,
                on_preview=on_preview if sample_task.num_previews else None,
                num_previews=sample_task.num_previews,
            )
        except Exception as error:  # as above
            yield _build_failed_event(error)
            return
        try:
            request_handle.future.add_done_callback(lambda _: put_event(None))
            while (event := await image_events.get()) is not None:
                yield event
            yield _build_final_event(request_handle, lease)
        finally:
            request_handle.cancel()

    async def report_status(self, backlog_steps: int = 0) -> ReplicaStatus:
        """What the replica does now.

        backlog_steps: this replica's share of what waits at the gateway
        """
        engines, now_s = self._model_cache.engines, time.monotonic()
        self._update_speed(now_s, sum(e.num_active for e in engines))
        self._backlog_steps, self._backlog_time_s = backlog_steps, now_s
        return ReplicaStatus(
            replica=self.id,
            steps_per_s=self._steps_per_s,
            active=sum(e.num_active for e in engines),
            waiting=sum(e.num_waiting for e in engines),
            remaining_steps=self._count_remaining_steps(),
            steps_done=round(self._steps_done),
            loaded_bytes=self._model_cache.size_bytes,
            loaded=self._model_cache.loaded_ids,
            models=self._list_step_costs(),
        )

    def _relative_step_cost(self, engine: "Engine") -> float:
        """Of an engine's step at its own size, in those that `steps_per_s` counts."""
        # Until a full batch has been timed, all models are taken for equal.
        return engine.step_costs.step_s * self._steps_per_s or 1.0

    def _list_step_costs(self) -> tuple[ModelStepCost, ...]:
        return tuple(
            ModelStepCost(
                model_ids, engine.model_side_px, self._relative_step_cost(engine),
                engine.step_costs.costs_by_size(),
            )
            for model_ids, engine in self._model_cache.list_engines()
        )  # fmt: skip

    def _count_remaining_steps(self) -> int:
        engines = self._model_cache.engines
        return round(sum(e.remaining_steps * self._relative_step_cost(e) for e in engines))

    def _update_speed(self, now_s: float, active: int) -> None:
        """Steps a second as they are since the last report, if the batch was full then and now."""
        is_batch_full = active >= _FULL_FRACTION * self._config.replicas.batch
        last_time_s, last_steps_done, was_batch_full = self._last_report
        self._last_report = (now_s, self._steps_done, is_batch_full)
        if is_batch_full and was_batch_full and now_s > last_time_s:
            measured_steps_per_s = (self._steps_done - last_steps_done) / (now_s - last_time_s)
            self._steps_per_s += _SPEED_UPDATE_WEIGHT * (measured_steps_per_s - self._steps_per_s)
        first_model_id = next(iter(self._config.models))
        for model_ids, engine in self._model_cache.list_engines():
            if model_ids[0] == first_model_id and engine.step_costs.step_s:
                self._steps_per_s = max(self._steps_per_s, 1 / engine.step_costs.step_s)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy reads: steps to do, waiting ones included."""
        # A gateway that has gone quiet has no backlog.
        backlog_steps = self._backlog_steps if time.monotonic() - self._backlog_time_s < 10 else 0
        return {"remaining_steps": float(self._count_remaining_steps() + backlog_steps)}

    def __del__(self) -> None:
        model_cache = getattr(self, "_model_cache", None)
        if model_cache is not None:
            model_cache.close()
            self._cache.remove()


def _build_request(sample_task: ImageSamplingTask, adapters: "AdapterMix") -> "Request":
    from dreambooth_ray.sampling.request import Request

    return Request(
        sample_task.prompt,
        sample_task.seed,
        negative_prompt=sample_task.negative_prompt,
        params=sample_task.params,
        width_px=sample_task.width_px,
        height_px=sample_task.height_px,
        image=sample_task.image.to_pil_image() if sample_task.image else None,
        mask=sample_task.mask.to_pil_image() if sample_task.mask else None,
        strength=sample_task.strength,
        adapters=adapters,
    )


def _build_final_event(request_handle: "RequestHandle", lease: "ModelLease") -> Event:
    if request_handle.future.cancelled():
        return Failed("internal", "the replica is closing; ask again")
    error = request_handle.future.exception()
    if error is not None:
        return _build_failed_event(error)
    sample_output: SampleOutput = request_handle.future.result()
    return Finished(
        Pixels.from_pil_image(sample_output.image),
        lease.weights_sha256,
        sample_output.request.params,
        lease.base_sha256,
        lease.adapter_sha256s,
    )


def _build_failed_event(error: BaseException) -> Failed:
    kind_by_error_class = {
        ConfigError: "config",
        CapacityError: "capacity",
        CheckpointError: "damaged",
    }
    for error_class, failure_kind in kind_by_error_class.items():
        if isinstance(error, error_class):
            return Failed(failure_kind, str(error))
    if isinstance(error, StorageError | OSError):
        return Failed("capacity", f"storage can't be read: {type(error).__name__}; ask again")
    return Failed("internal", type(error).__name__)
