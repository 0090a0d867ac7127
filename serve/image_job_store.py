"""Jobs as storage keeps them, so that no process's death loses one.

serve/jobs/queue/       a `WorkQueue`: a job's record (what was asked, and by whom), whether it
                        waits, runs or is over; owners are callers, who take turns
serve/jobs/{id}/
  image, mask             uploads, as they came
  state.json              status, times, error
  lease-0001.json ...     the queue's claim: who runs it
  progress.json           steps, from time to time
  cancel                  the caller wants no more of it
  0.png, 0.json ...       finished images and their receipts
  preview-0.png ...       the newest preview of each

Of earlier versions, whose jobs are done and forgotten as well:
serve/jobs/{id}/request.json      the record
serve/jobs/open/{id}              there is something to do
serve/jobs/ended/{seconds}-{id}   it ended then (Unix time)
"""

import contextlib
import json
import re
import time

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.claims import ClaimedWork
from dreambooth_ray.queue.queue_garbage import remove_ended_work
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkEnd, WorkMark
from dreambooth_ray.storage.lease import Clock
from dreambooth_ray.storage.store import Store
from serve.api_errors import APIError
from serve.api_messages import JOB_PATTERN, JobAnswer, JobStatus, Receipt
from serve.generation_spec import EditUpload, EncodedImage
from serve.image_job_records import ImageJobRecord, ImageJobState, parse_image_job_record

FOLDER = "serve/jobs"
_FILE = re.compile(r"^(preview-)?\d{1,3}\.(png|jpeg|webp)$")
_OPEN, _ENDED = "open", "ended"
_WORK_ENDS: dict[JobStatus, WorkEnd] = {"completed": "done", "cancelled": "cancelled"}
_ENDED_NAME = re.compile(r"^(\d{12})-(job_[0-9a-f]{32})$")
_MOST_A_LOOK, _ALL = 1000, 10**6


class ImageJobStore:
    """Reads and writes jobs. Blocking: call it from a thread."""

    def __init__(self, storage_uri: str, clock: Clock = time.monotonic) -> None:
        """clock: that others' leases are watched by"""
        self._store = Store(storage_uri).sub(FOLDER)
        self._queue_store = self._store.sub("queue")
        # Claims lie where those of earlier versions do: one of them may run as well.
        self._queue = WorkQueue(self._queue_store, clock, claims=self._store)

    def count_open(self, limit: int) -> tuple[int, int]:
        """Jobs that run and that wait, in one request for each 1,000; `limit` at most."""
        return self._queue.count_open_work(limit)

    def add(self, record: ImageJobRecord, upload: EditUpload | None) -> None:
        """A new job: that it waits is written last, and makes it count."""
        if upload is not None:
            self._store.write(f"{record.id}/image", upload.image)
            if upload.mask is not None:
                self._store.write(f"{record.id}/mask", upload.mask)
        self.set_state(record.id, ImageJobState(webhook="pending" if record.webhook_url else None))
        self._queue.add(record.make_queue_record())

    def claim(self, record: ImageJobRecord, lease_s: float) -> ClaimedWork | None:
        """Become its runner, if it waits; one of several callers wins."""
        return self._queue.claim(WorkMark.of(record.make_queue_record()), lease_s)

    def claim_next(self, lease_s: float) -> ClaimedWork | None:
        """Become the runner of the next one, of the caller of whom least runs."""
        return self._queue.claim_next(lease_s)

    def renew_claim(self, work: ClaimedWork) -> bool:
        """Show that the runner lives; False once another has taken over, or its time is up."""
        return self._queue.renew(work)

    def put_back_orphans(self, lease_s: float) -> None:
        """Let jobs wait again whose runners have died."""
        self._queue.requeue_abandoned_work(lease_s)

    def finish_or_give_back(self, work: ClaimedWork) -> None:
        """A runner is done with a job: it is over, or waits for the next runner."""
        state = self.read_state(work.record.id)
        if state.has_ended_and_notified:
            self._queue.finish(work, _WORK_ENDS.get(state.status, "failed"))
        else:
            self._queue.give_back(work)

    def adopt_earlier_version_jobs(self) -> None:
        """As `adopt_earlier_version_open_jobs`, and of versions without a list of what is open."""
        self.adopt_earlier_version_open_jobs()
        known_job_ids = {mark.id for mark in self._queue.list_marks("waiting", "", _ALL)}
        known_job_ids |= {mark.id for mark in self._queue.list_marks("running", "", _ALL)}
        known_job_ids |= {end.id for end in self._queue.list_ended("", _ALL)}
        known_job_ids |= {job_id for job_id, _ in self._list_ended_by_earlier_versions(_ALL)}
        job_ids = {n for n in self._store.names() if re.fullmatch(JOB_PATTERN, n)}
        for job_id in job_ids - known_job_ids:
            self._adopt_job(job_id)

    def adopt_earlier_version_open_jobs(self) -> None:
        """Take open jobs of an earlier version, which may run beside this one, into the queue."""
        for job_id in self._store.files_after(_OPEN, "", _MOST_A_LOOK):
            if re.fullmatch(JOB_PATTERN, job_id):
                self._adopt_job(job_id)
                self._store.remove_file(f"{_OPEN}/{job_id}")

    def _adopt_job(self, job_id: str) -> None:
        with contextlib.suppress(APIError):  # half written, or removed by hand
            record, state = self.read_record(job_id), self.read_state(job_id)
            if state.has_ended_and_notified:
                self._store.write(self._ended_name(job_id, state.finished_at or 0.0), b"")
            else:
                self._queue.add(record.make_queue_record())

    def read_record(self, job_id: str) -> ImageJobRecord:
        """raises APIError 404 if there is no such job."""
        if not re.fullmatch(JOB_PATTERN, job_id):
            raise job_not_found_error(job_id)
        try:
            try:
                return parse_image_job_record(self._queue.read(job_id))
            except ConfigError:
                record_json = self._store.read(f"{job_id}/request.json")
                return ImageJobRecord.model_validate_json(record_json)
        except (FileNotFoundError, ValueError) as error:
            raise job_not_found_error(job_id) from error

    def read_upload(self, job_id: str) -> EditUpload | None:
        """Its uploads."""
        try:
            image = self._store.read(f"{job_id}/image")
        except FileNotFoundError:
            return None
        mask = None
        with contextlib.suppress(FileNotFoundError):
            mask = self._store.read(f"{job_id}/mask")
        return EditUpload(image, mask)

    def read_state(self, job_id: str) -> ImageJobState:
        """raises APIError 404."""
        try:
            return ImageJobState.model_validate_json(self._store.read(f"{job_id}/state.json"))
        except (FileNotFoundError, ValueError) as error:
            raise job_not_found_error(job_id) from error

    def set_state(self, job_id: str, state: ImageJobState) -> None:
        """Replace it."""
        self._store.write(f"{job_id}/state.json", state.model_dump_json().encode())

    def set_progress(self, job_id: str, step: int, total: int, previews: dict[int, bytes]) -> None:
        """Write the steps of all its images, and new previews."""
        for index, preview_bytes in previews.items():
            self._store.write(f"{job_id}/preview-{index}.png", preview_bytes)
        progress_json = json.dumps({"step": step, "total": total})
        self._store.write(f"{job_id}/progress.json", progress_json.encode())

    def write_finished_image(
        self, job_id: str, index: int, encoded_image: EncodedImage, suffix: str
    ) -> None:
        """Image first, receipt last: the receipt makes it count."""
        self._store.write(f"{job_id}/{index}.{suffix}", encoded_image.data)
        self._store.write(
            f"{job_id}/{index}.json", encoded_image.receipt.model_dump_json().encode()
        )

    def list_finished_image_indices(self, job_id: str) -> list[int]:
        """Indices of its finished images."""
        receipt_name_matches = (
            re.fullmatch(r"(\d{1,3})\.json", name) for name in self._store.names(job_id)
        )
        return sorted(int(m.group(1)) for m in receipt_name_matches if m)

    def read_job_image(self, job_id: str, name: str) -> bytes:
        """An image of a job; raises APIError 404."""
        if not _FILE.fullmatch(name):
            raise job_not_found_error(f"{job_id}/{name}")
        try:
            return self._store.read(f"{job_id}/{name}")
        except FileNotFoundError as error:
            raise job_not_found_error(f"{job_id}/{name}") from error

    def cancel(self, job_id: str) -> None:
        """Say that nobody wants it any more."""
        self._store.write(f"{job_id}/cancel", b"")

    def is_cancelled(self, job_id: str) -> bool:
        """Whether that was said."""
        return self._store.exists(f"{job_id}/cancel")

    def forget_ended(self, before_s: float) -> None:
        """Remove jobs that ended before a time: what makes them known first, their mark last."""
        for ended_work in self._queue.list_ended("", _MOST_A_LOOK):
            if ended_work.ended_ms / 1000 > before_s:
                break
            remove_ended_work(self._queue_store, self._store, (ended_work,))
        for job_id, ended_s in self._list_ended_by_earlier_versions(_MOST_A_LOOK):
            if ended_s > before_s:
                return
            self._store.remove_file(f"{job_id}/request.json")
            self._store.remove(job_id)
            self._store.remove_file(self._ended_name(job_id, ended_s))

    def _list_ended_by_earlier_versions(self, limit: int) -> list[tuple[str, float]]:
        """Jobs that earlier versions ended, and when (Unix time), oldest first."""
        ended_name_matches = map(_ENDED_NAME.match, self._store.files_after(_ENDED, "", limit))
        return [(m.group(2), float(m.group(1))) for m in ended_name_matches if m]

    def build_answer(self, record: ImageJobRecord, position: int | None) -> JobAnswer:
        """As GET /v1/jobs/{id} has it."""
        state, file_names, progress = self.read_state(record.id), self._store.names(record.id), {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            progress = json.loads(self._store.read(f"{record.id}/progress.json"))
        file_suffix = record.request.output_format
        finished_indices = self.list_finished_image_indices(record.id)
        receipt_texts = [self._store.read(f"{record.id}/{k}.json") for k in finished_indices]
        preview_names = [n for n in file_names if n.startswith("preview-") and _FILE.fullmatch(n)]
        return JobAnswer(
            id=record.id,
            status=state.status,
            created_at=record.created_at,
            finished_at=state.finished_at,
            model=record.model,
            n=record.request.n,
            images_done=len(finished_indices),
            position=position if state.finished_at is None else None,
            step=int(progress.get("step", 0)),
            total_steps=int(progress.get("total", 0)),
            previews=[f"/v1/jobs/{record.id}/files/{name}" for name in preview_names],
            images=[f"/v1/jobs/{record.id}/files/{k}.{file_suffix}" for k in finished_indices],
            receipts=[Receipt.model_validate_json(r) for r in receipt_texts],
            error=state.error,
        )

    @staticmethod
    def _ended_name(job_id: str, ended_s: float) -> str:
        return f"{_ENDED}/{int(ended_s):012d}-{job_id}"


def job_not_found_error(job_id: str) -> APIError:
    """404, the same for what is not there and what is somebody else's."""
    error_message = f"job {job_id[:80]!r} is not known; finished jobs are kept for a while only"
    return APIError(404, "job_not_found", error_message)
