"""Runs jobs: this gateway's own, and those whose runner has died."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from dreambooth_ray.config.serving import JobsConfig
from dreambooth_ray.queue.claims import ClaimedWork
from serve.active_image_jobs import ActiveImageJob
from serve.admission import Reservation
from serve.api_errors import APIError, busy_error
from serve.api_messages import EditJobRequest, EditRequest, GenerationRequest, JobAnswer, JobRequest
from serve.auth import Caller
from serve.gateway_metrics import Metrics
from serve.generation_spec import EditUpload, GenerationSpec
from serve.image_answers import require_base64_response_format
from serve.image_job_records import (
    ImageJobRecord,
    ImageJobState,
    new_image_job_id,
    parse_image_job_record,
)
from serve.image_job_state_writer import mark_image_job_cancelled, write_state_despite_cancellation
from serve.image_job_store import ImageJobStore, job_not_found_error
from serve.image_service import ImageService
from serve.poll_timer import PollTimer, log_and_suppress_failure
from serve.webhooks import check_webhook_url

_LOG = logging.getLogger("dreambooth.serve")
# With nothing to do a runner looks six times a minute: it is there for what others leave behind.
_CHECK_INTERVAL_S, _IDLE_INTERVAL_S = 1.0, 10.0
_FORGET_INTERVAL_S = 60.0
_RETRY_S = 1.0
WebhookNotifier = Callable[[str, dict[str, object]], Awaitable[bool]]


class ImageJobRunner:
    """Takes jobs and runs them to their end."""

    def __init__(
        self,
        config: JobsConfig,
        job_store: ImageJobStore,
        image_service: ImageService,
        metrics: Metrics,
        notify: WebhookNotifier | None = None,
    ) -> None:
        """notify(url, event): POSTs to a webhook; True once it is delivered."""
        self._config, self._job_store, self._image_service = config, job_store, image_service
        self._metrics, self._notify = metrics, notify
        self._active_jobs: dict[str, ActiveImageJob] = {}
        self._claim_lock = asyncio.Lock()
        self._num_open = 0
        self._poll_timer = PollTimer(min(_CHECK_INTERVAL_S, config.lease_s / 4), _IDLE_INTERVAL_S)
        self._next_forget_s = -float("inf")

    async def submit(
        self, caller: Caller, request: JobRequest | EditJobRequest, upload: EditUpload | None
    ) -> JobAnswer:
        """Write a job down and begin with it; raises APIError for what can't be generated."""
        if request.stream:
            raise APIError(400, "invalid_value", "a job has no stream; ask for it", param="stream")
        if request.webhook_url:
            await check_webhook_url(request.webhook_url, is_enabled=self._notify is not None)
        max_waiting = self._config.waiting
        if self._num_open + 1 > max_waiting:
            raise busy_error(f"{self._num_open} jobs wait and {max_waiting} is the most", 30.0)
        require_base64_response_format(request, "jobs: a job's answer has the paths of its images")
        spec = await self._image_service.resolve_request(caller, request, upload)
        request_class = EditRequest if isinstance(request, EditJobRequest) else GenerationRequest
        # Seed and version are fixed now: any runner generates the same images.
        request_fields = request.model_dump(exclude={"webhook_url"})
        request_fields |= {"seed": spec.sample_tasks[0].seed, "model": spec.subject.id}
        stored_request = request_class.model_validate(request_fields)
        record = ImageJobRecord(
            id=new_image_job_id(), caller=caller.id, model=spec.subject.id, created_at=time.time(),
            generation=stored_request if isinstance(stored_request, GenerationRequest) else None,
            edit=stored_request if isinstance(stored_request, EditRequest) else None,
            webhook_url=request.webhook_url,
        )  # fmt: skip
        await asyncio.to_thread(self._job_store.add, record, upload)
        self._num_open += 1
        self._poll_timer.wake()
        await self._claim_and_start_job(partial(self._job_store.claim, record))
        return await self.build_answer(record)

    async def find_job(self, caller: Caller, job_id: str) -> ImageJobRecord:
        """A job of the caller's; raises APIError 404."""
        record = await asyncio.to_thread(self._job_store.read_record, job_id)
        if record.caller != caller.id:
            raise job_not_found_error(job_id)
        return record

    async def build_answer(self, record: ImageJobRecord) -> JobAnswer:
        """Where a job stands."""
        active_job = self._active_jobs.get(record.id)
        positions = [t.position for t in active_job.reservations] if active_job else []
        queue_position = min((p for p in positions if p is not None), default=None)
        return await asyncio.to_thread(self._job_store.build_answer, record, queue_position)

    async def read_job_image(self, record: ImageJobRecord, name: str) -> bytes:
        """An image of a job; raises APIError 404."""
        return await asyncio.to_thread(self._job_store.read_job_image, record.id, name)

    async def cancel(self, record: ImageJobRecord) -> JobAnswer:
        """Stop a job, wherever it runs; its finished images stay."""
        await asyncio.to_thread(self._job_store.cancel, record.id)
        active_job = self._active_jobs.get(record.id)
        if active_job is not None:
            await self._stop_image_job(active_job)
        return await self.build_answer(record)

    async def _stop_image_job(self, active_job: ActiveImageJob) -> None:
        """End a running job that is cancelled; once, though several may ask and go away."""
        if active_job.stop_task is None:
            active_job.stop_task = asyncio.create_task(self._cancel_running_job(active_job))
        await asyncio.shield(active_job.stop_task)

    async def _cancel_running_job(self, active_job: ActiveImageJob) -> None:
        if active_job.task is not None:
            active_job.task.cancel()
            await asyncio.gather(active_job.task, return_exceptions=True)
        await mark_image_job_cancelled(self._job_store, active_job.record.id)
        await asyncio.to_thread(self._job_store.finish_or_give_back, active_job.work)
        self._poll_timer.wake()

    async def watch_jobs(self) -> None:
        """Renew leases, write progress, take over what is orphaned, forget what is old."""
        await asyncio.gather(self._adopt_jobs_of_earlier_versions(), self._poll_jobs())

    async def _adopt_jobs_of_earlier_versions(self) -> None:
        with log_and_suppress_failure("jobs.adopt_failed"):
            await asyncio.to_thread(self._job_store.adopt_earlier_version_jobs)
            self._poll_timer.wake()

    async def _poll_jobs(self) -> None:
        while True:
            with log_and_suppress_failure("jobs.look_failed"):
                await self.run_poll_round()
            await self._poll_timer.wait(bool(self._num_open or self._active_jobs))

    async def run_poll_round(self) -> None:
        """One round of `watch_jobs`; looks at what is open, not at all that has ended."""
        for active_job in list(self._active_jobs.values()):
            await self._renew_lease(active_job)
        max_waiting, lease_s = self._config.waiting, self._config.lease_s
        num_running, num_waiting = await asyncio.to_thread(self._job_store.count_open, max_waiting)
        self._num_open = num_running + num_waiting
        if num_running > len(self._active_jobs):
            await asyncio.to_thread(self._job_store.put_back_orphans, lease_s)
        while self._num_open and await self._claim_and_start_job(self._job_store.claim_next):
            pass
        self._metrics.jobs.set(len(self._active_jobs))
        await self._forget_ended_jobs()

    async def _forget_ended_jobs(self) -> None:
        """Remove what ended longer ago than `keep_s`; asks once in a while."""
        if time.monotonic() < self._next_forget_s:
            return
        self._next_forget_s = time.monotonic() + min(_FORGET_INTERVAL_S, self._config.keep_s / 4)
        await asyncio.to_thread(self._job_store.forget_ended, time.time() - self._config.keep_s)
        await asyncio.to_thread(self._job_store.adopt_earlier_version_open_jobs)

    async def _claim_and_start_job(self, claim: Callable[[float], ClaimedWork | None]) -> bool:
        """Whether there was room here, and a job to claim."""
        async with self._claim_lock:
            if len(self._active_jobs) >= self._config.concurrent:
                return False
            work = await asyncio.to_thread(claim, self._config.lease_s)
            if work is None:
                return False
            record = parse_image_job_record(work.record)
            active_job = self._active_jobs[work.record.id] = ActiveImageJob(record, work)
            active_job.task = asyncio.create_task(self._run_job(active_job))
            return True

    async def _renew_lease(self, active_job: ActiveImageJob) -> None:
        job_id = active_job.record.id
        if not await self._is_renewed(active_job.work):
            # Another runner holds it now, or may: this one must write no more.
            self._active_jobs.pop(job_id, None)
            if active_job.task is not None:
                active_job.task.cancel()
            return
        if active_job.has_unsaved_progress:
            progress = active_job.take_progress()
            await asyncio.to_thread(self._job_store.set_progress, job_id, *progress)
        if await asyncio.to_thread(self._job_store.is_cancelled, job_id):
            await self._stop_image_job(active_job)

    async def _is_renewed(self, work: ClaimedWork) -> bool:
        """False once another runner has taken over, or storage did not hear of this one in time."""
        try:
            async with asyncio.timeout(work.lease.seconds_until_expiry):
                return await asyncio.to_thread(self._job_store.renew_claim, work)
        except TimeoutError:
            return False

    async def _run_job(self, active_job: ActiveImageJob) -> None:
        try:
            await self._generate_and_notify(active_job)
            await asyncio.to_thread(self._job_store.finish_or_give_back, active_job.work)
        finally:
            self._active_jobs.pop(active_job.record.id, None)

    async def _generate_and_notify(self, active_job: ActiveImageJob) -> None:
        job_id = active_job.record.id
        try:
            state = await asyncio.to_thread(self._job_store.read_state, job_id)
            if state.finished_at is None:
                state = await self._generate_images(active_job, state)
            await self._notify_webhook(active_job, state)
        except Exception as error:  # the job stays as it is, for the next runner, after a while
            _LOG.exception("jobs.run_failed", extra={"job": job_id, "error": type(error).__name__})
            await asyncio.sleep(self._config.lease_s)

    async def _generate_images(self, job: ActiveImageJob, state: ImageJobState) -> ImageJobState:
        record, job_store = job.record, self._job_store
        if await asyncio.to_thread(job_store.is_cancelled, record.id):
            return await mark_image_job_cancelled(self._job_store, record.id)
        try:
            await self._generate_missing_images(job)
            state_update = {"status": "completed", "finished_at": time.time()}
        except APIError as api_error:
            self._image_service.count_refusal(api_error)
            state_update = {"status": "failed", "finished_at": time.time(), **api_error.body}
        final_state = state.model_copy(update=state_update)
        await write_state_despite_cancellation(self._job_store, record.id, final_state)
        return final_state

    async def _generate_missing_images(self, active_job: ActiveImageJob) -> None:
        """Generate images that have no receipt yet; each is written as soon as it is there."""
        record, job_store = active_job.record, self._job_store
        upload = await asyncio.to_thread(job_store.read_upload, record.id)
        caller = Caller(record.caller, None)
        spec = await self._image_service.resolve_request(caller, record.request, upload)
        # A few previews, though nobody streams.
        sample_tasks = [replace(d, num_previews=3) for d in spec.sample_tasks]
        finished = set(await asyncio.to_thread(job_store.list_finished_image_indices, record.id))
        missing_indices = [k for k in range(record.request.n) if k not in finished]
        specs = {k: replace(spec, sample_tasks=[sample_tasks[k]]) for k in missing_indices}
        missing_spec = replace(spec, sample_tasks=[sample_tasks[k] for k in missing_indices])
        reservations = await self._wait_for_admission(missing_spec)
        active_job.reservations, image_tasks = reservations, list[asyncio.Task[None]]()
        try:
            queued_state = await asyncio.to_thread(job_store.read_state, record.id)
            running_state = queued_state.model_copy(update={"status": "running"})
            await write_state_despite_cancellation(self._job_store, record.id, running_state)
            image_tasks += [
                asyncio.create_task(self._generate_image(active_job, k, specs[k], reservation))
                for k, reservation in zip(missing_indices, reservations, strict=True)
            ]
            await asyncio.gather(*image_tasks)
        finally:
            for image_task in image_tasks:
                image_task.cancel()
            await asyncio.gather(*image_tasks, return_exceptions=True)
            for reservation in reservations:
                reservation.close()

    async def _generate_image(
        self, active_job: ActiveImageJob, index: int, spec: GenerationSpec, reservation: Reservation
    ) -> None:
        record = active_job.record
        for attempt in range(3):
            try:
                encoded_images = await self._image_service.generate_images(
                    spec, [reservation], lambda _, event: active_job.record_event(index, event)
                )
                break
            except APIError as api_error:
                # Work that has been accepted waits for better times; what is wrong stays wrong.
                if api_error.status != 503 or attempt == 2:
                    raise
                await asyncio.sleep(_RETRY_S)
                [reservation] = await self._wait_for_admission(spec)
        write_image, suffix = self._job_store.write_finished_image, record.request.output_format
        await asyncio.to_thread(write_image, record.id, index, encoded_images[0], suffix)

    async def _wait_for_admission(self, spec: GenerationSpec) -> list[Reservation]:
        """Reservations, however long that takes."""
        while True:
            try:
                return self._image_service.admit(spec, within_deadline=False)
            except APIError:
                await asyncio.sleep(_RETRY_S)

    async def _notify_webhook(self, active_job: ActiveImageJob, state: ImageJobState) -> None:
        record = active_job.record
        if state.webhook != "pending" or self._notify is None or record.webhook_url is None:
            return
        payload = (await self.build_answer(record)).model_dump(mode="json", exclude={"receipts"})
        webhook_event = {"type": f"job.{state.status}", "timestamp": time.time(), "data": payload}
        is_delivered = await self._notify(record.webhook_url, webhook_event)
        state = state.model_copy(update={"webhook": "delivered" if is_delivered else "failed"})
        await write_state_despite_cancellation(self._job_store, record.id, state)
