"""Runs jobs: this gateway's own, and those whose runner has died."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

from dreambooth_ray.config.serving import JobsConfig
from dreambooth_ray.errors import ConfigError
from serve.active_jobs import ActiveJob
from serve.admission import Reservation
from serve.api_errors import APIError, busy
from serve.api_messages import EditJobRequest, EditRequest, GenerationRequest, JobAnswer, JobRequest
from serve.auth import Caller
from serve.gateway_metrics import Metrics
from serve.image_service import ImageService, Order, Upload
from serve.job_store import JobRecord, JobState, JobStore, new_job_id, no_such_job
from serve.webhooks import check_target

_LOG = logging.getLogger("dreambooth.serve")
_TICK_S = 1.0
_AGAIN_S = 1.0
Notify = Callable[[str, dict[str, object]], Awaitable[bool]]


class Runner:
    """Takes jobs and sees them to their end."""

    def __init__(
        self,
        config: JobsConfig,
        jobs: JobStore,
        studio: ImageService,
        metrics: Metrics,
        notify: Notify | None = None,
    ) -> None:
        """notify(url, event): tells a webhook; True once it has been told."""
        self._config, self._jobs, self._studio = config, jobs, studio
        self._metrics, self._notify = metrics, notify
        self.owner = uuid.uuid4().hex
        self._running: dict[str, ActiveJob] = {}
        self._taking = asyncio.Lock()
        self._over: set[str] = set()
        self._open = 0

    async def submit(
        self, caller: Caller, request: JobRequest | EditJobRequest, upload: Upload | None
    ) -> JobAnswer:
        """Write a job down and begin with it; raises Refusal for what can't be drawn."""
        if request.stream:
            raise APIError(400, "invalid_value", "a job has no stream; ask for it", param="stream")
        if request.webhook_url:
            await self._check_webhook(request.webhook_url)
        if self._open + 1 > self._config.waiting:
            raise busy(f"{self._open} jobs wait and {self._config.waiting} is the most", 30.0)
        order = await self._studio.order(caller, request, upload)
        kind = EditRequest if isinstance(request, EditJobRequest) else GenerationRequest
        # Seed and version are settled now: whoever runs it draws the same.
        values = request.model_dump(exclude={"webhook_url"})
        values |= {"seed": order.drawings[0].seed, "model": order.subject.id}
        asked = kind.model_validate(values)
        record = JobRecord(
            id=new_job_id(), caller=caller.id, model=order.subject.id, created_at=time.time(),
            generation=asked if isinstance(asked, GenerationRequest) else None,
            edit=asked if isinstance(asked, EditRequest) else None,
            webhook_url=request.webhook_url,
        )  # fmt: skip
        await asyncio.to_thread(self._jobs.add, record, upload)
        self._open += 1
        await self._take(record)
        return await self.answer(record)

    async def _check_webhook(self, url: str) -> None:
        if self._notify is None:
            text = "webhooks are off here: the endpoint has no signing secret"
            raise APIError(400, "invalid_value", text, param="webhook_url")
        try:
            await asyncio.to_thread(check_target, url)
        except ConfigError as error:
            raise APIError(400, "invalid_value", str(error), param="webhook_url") from error

    async def find(self, caller: Caller, job: str) -> JobRecord:
        """A job of the caller's; raises Refusal 404."""
        record = await asyncio.to_thread(self._jobs.record, job)
        if record.caller != caller.id:
            raise no_such_job(job)
        return record

    async def answer(self, record: JobRecord) -> JobAnswer:
        """Where a job stands."""
        running = self._running.get(record.id)
        places = [t.position for t in running.turns] if running else []
        known = [p for p in places if p is not None]
        position = min(known) if known else None
        return await asyncio.to_thread(self._jobs.answer, record, position)

    async def file(self, record: JobRecord, name: str) -> bytes:
        """An image of a job; raises Refusal 404."""
        return await asyncio.to_thread(self._jobs.file, record.id, name)

    async def cancel(self, record: JobRecord) -> JobAnswer:
        """Stop a job, wherever it runs; its finished images stay."""
        await asyncio.to_thread(self._jobs.cancel, record.id)
        running = self._running.get(record.id)
        if running is not None:
            await self._stop(running)
        return await self.answer(record)

    async def _stop(self, running: ActiveJob) -> None:
        """End a job in hand that nobody wants any more; once, whoever asks and goes away."""
        if running.stopping is None:
            running.stopping = asyncio.create_task(self._end(running))
        await asyncio.shield(running.stopping)

    async def _end(self, running: ActiveJob) -> None:
        if running.task is not None:
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)
        await self._mark_cancelled(running.record.id)

    async def _write_state(self, job: str, state: JobState) -> None:
        """Write it to the end, though the task be cancelled: a thread can't be stopped half-way,
        and must not write after the one that comes next."""
        write = asyncio.create_task(asyncio.to_thread(self._jobs.set_state, job, state))
        try:
            await asyncio.shield(write)
        except asyncio.CancelledError:
            await asyncio.wait([write])
            raise

    async def _mark_cancelled(self, job: str) -> JobState:
        state = await asyncio.to_thread(self._jobs.state, job)
        if state.finished_at is None:
            update = {"status": "cancelled", "finished_at": time.time()}
            state = state.model_copy(update=update)
            await self._write_state(job, state)
        return state

    async def watch(self) -> None:
        """Renew leases, write progress, take over what is orphaned, forget what is old."""
        while True:
            try:
                await self.look()
            except Exception as error:  # storage that is away comes back
                _LOG.warning("jobs.look_failed", extra={"error": type(error).__name__})
            await asyncio.sleep(min(_TICK_S, self._config.lease_s / 4))

    async def look(self) -> None:
        """One round of `watch`."""
        for running in list(self._running.values()):
            await self._renew(running)
        found = await asyncio.to_thread(self._jobs.ids)
        self._open = len(set(found) - self._over)
        for job in found:
            if job not in self._running:
                await self._consider(job)
        self._over &= set(found)
        self._metrics.jobs.set(len(self._running))

    async def _consider(self, job: str) -> None:
        with contextlib.suppress(APIError):
            state = await asyncio.to_thread(self._jobs.state, job)
            if state.is_over:
                self._over.add(job)
                if time.time() - (state.finished_at or 0) > self._config.keep_s:
                    await asyncio.to_thread(self._jobs.remove, job)
            elif len(self._running) < self._config.concurrent:
                await self._take(await asyncio.to_thread(self._jobs.record, job))

    async def _take(self, record: JobRecord) -> None:
        async with self._taking:
            if len(self._running) >= self._config.concurrent or record.id in self._running:
                return
            claimed = await asyncio.to_thread(
                self._jobs.claim, record.id, self.owner, self._config.lease_s
            )
            if claimed is not None:
                running = self._running[record.id] = ActiveJob(record, claimed)
                running.task = asyncio.create_task(self._run(running))

    async def _renew(self, running: ActiveJob) -> None:
        job = running.record.id
        if not await asyncio.to_thread(self._jobs.renew, job, running.lease):
            # Another runner holds it now: this one must write no more.
            self._running.pop(job, None)
            if running.task is not None:
                running.task.cancel()
            return
        if running.dirty:
            previews, running.previews, running.dirty = running.previews, {}, False
            step = sum(s for s, _ in running.steps.values())
            total = sum(running.record.request.num_inference_steps for _ in running.steps)
            await asyncio.to_thread(self._jobs.set_progress, job, step, total, previews)
        if await asyncio.to_thread(self._jobs.is_cancelled, job):
            await self._stop(running)

    async def _run(self, running: ActiveJob) -> None:
        job, jobs = running.record.id, self._jobs
        try:
            state = await asyncio.to_thread(jobs.state, job)
            if state.finished_at is None:
                state = await self._draw(running, state)
            await self._tell(running, state)
        except Exception as error:  # the job stays as it is, for the next runner
            _LOG.exception("jobs.run_failed", extra={"job": job, "error": type(error).__name__})
        finally:
            self._running.pop(job, None)

    async def _draw(self, running: ActiveJob, state: JobState) -> JobState:
        record, jobs = running.record, self._jobs
        if await asyncio.to_thread(jobs.is_cancelled, record.id):
            return await self._mark_cancelled(record.id)
        try:
            await self._draw_missing(running)
            ended = state.model_copy(update={"status": "completed", "finished_at": time.time()})
        except APIError as refusal:
            self._studio.count_refusal(refusal)
            update = {"status": "failed", "finished_at": time.time(), **refusal.body}
            ended = state.model_copy(update=update)
        await self._write_state(record.id, ended)
        return ended

    async def _draw_missing(self, running: ActiveJob) -> None:
        """Draw what has no receipt yet, each image written as soon as it is there."""
        record, jobs = running.record, self._jobs
        upload = await asyncio.to_thread(jobs.upload, record.id)
        order = await self._studio.order(Caller(record.caller, None), record.request, upload)
        # A look now and then, though nobody streams.
        drawings = [replace(d, num_previews=3) for d in order.drawings]
        done = set(await asyncio.to_thread(jobs.finished_images, record.id))
        missing = [k for k in range(record.request.n) if k not in done]
        orders = {k: replace(order, drawings=[drawings[k]]) for k in missing}
        turns = await self._enter(replace(order, drawings=[drawings[k] for k in missing]))
        running.turns, work = turns, list[asyncio.Task[None]]()
        try:
            waiting = await asyncio.to_thread(jobs.state, record.id)
            running_state = waiting.model_copy(update={"status": "running"})
            await self._write_state(record.id, running_state)
            work += [
                asyncio.create_task(self._draw_one(running, k, orders[k], turn))
                for k, turn in zip(missing, turns, strict=True)
            ]
            await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            for turn in turns:
                turn.close()

    async def _draw_one(
        self, running: ActiveJob, index: int, order: Order, turn: Reservation
    ) -> None:
        record = running.record
        for attempt in range(3):
            try:
                rendered = await self._studio.draw(
                    order, [turn], lambda _, event: running.note(index, event)
                )
                break
            except APIError as refusal:
                # Work that has been accepted waits for better times; what is wrong stays wrong.
                if refusal.status != 503 or attempt == 2:
                    raise
                await asyncio.sleep(_AGAIN_S)
                [turn] = await self._enter(order)
        suffix = record.request.output_format
        await asyncio.to_thread(self._jobs.finish_image, record.id, index, rendered[0], suffix)

    async def _enter(self, order: Order) -> list[Reservation]:
        """Places at the desk, however long that takes."""
        while True:
            try:
                return self._studio.enter(order, within_deadline=False)
            except APIError:
                await asyncio.sleep(_AGAIN_S)

    async def _tell(self, running: ActiveJob, state: JobState) -> None:
        record = running.record
        if state.webhook != "pending" or self._notify is None or record.webhook_url is None:
            return
        answer = await self.answer(record)
        data = answer.model_dump(mode="json", exclude={"receipts"})
        event = {"type": f"job.{state.status}", "timestamp": time.time(), "data": data}
        told = await self._notify(record.webhook_url, event)
        state = state.model_copy(update={"webhook": "delivered" if told else "failed"})
        await self._write_state(record.id, state)
