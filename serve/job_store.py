"""Jobs as storage keeps them, so that no process's death loses one.

serve/jobs/{id}/
  request.json            what was asked, and by whom
  image, mask             uploads, as they came
  state.json              status, times, error
  lease-0001.json ...     who runs it; the highest number counts, and only while it is renewed
  progress.json           steps, from time to time
  cancel                  the caller wants no more of it
  0.png, 0.json ...       finished images and their receipts
  preview-0.png ...       the newest preview of each

serve/jobs/open/{id}              there is something to do: what runners look at
serve/jobs/ended/{seconds}-{id}   it ended then (Unix time): the oldest are forgotten first
"""

import contextlib
import json
import re
import time
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict

from dreambooth_ray.queue.claims import Claims
from dreambooth_ray.storage.lease import Clock, Lease
from dreambooth_ray.storage.store import Store
from serve.api_errors import APIError
from serve.api_messages import (
    JOB_PATTERN,
    EditRequest,
    GenerationRequest,
    JobAnswer,
    JobStatus,
    Receipt,
)
from serve.generation_spec import EncodedImage, Upload

FOLDER = "serve/jobs"
_FILE = re.compile(r"^(preview-)?\d{1,3}\.(png|jpeg|webp)$")
_OPEN, _ENDED = "open", "ended"
_ENDED_NAME = re.compile(r"^(\d{12})-(job_[0-9a-f]{32})$")
_MOST_A_LOOK, _ALL = 1000, 10**6


class JobRecord(BaseModel):
    """What a job is; written once."""

    model_config = ConfigDict(frozen=True)

    id: str
    caller: str
    model: str
    created_at: float
    generation: GenerationRequest | None = None
    edit: EditRequest | None = None
    webhook_url: str | None = None

    @property
    def request(self) -> GenerationRequest | EditRequest:
        """What to generate."""
        request = self.generation or self.edit
        if request is None:
            raise ValueError(f"job {self.id} asks for nothing")
        return request


class JobState(BaseModel):
    """Where a job stands; written by its runner alone."""

    model_config = ConfigDict(frozen=True)

    status: JobStatus = "queued"
    finished_at: float | None = None
    error: dict[str, Any] | None = None
    webhook: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, word to the webhook included."""
        return self.finished_at is not None and self.webhook != "pending"


def new_job_id() -> str:
    """Not to be guessed."""
    return f"job_{uuid.uuid4().hex}"


class JobStore:
    """Reads and writes jobs. Blocking: call it from a thread."""

    def __init__(self, storage_uri: str, clock: Clock = time.monotonic) -> None:
        """clock: that others' leases are watched by"""
        self._store = Store(storage_uri).sub(FOLDER)
        self._claims = Claims(self._store, clock)

    def list_open_ids(self, limit: int) -> list[str]:
        """Jobs that are not over, in one request; `limit` of them at most."""
        return [n for n in self._store.files_after(_OPEN, "", limit) if re.match(JOB_PATTERN, n)]

    def list_ended(self, limit: int) -> list[tuple[str, float]]:
        """Jobs that are over and not forgotten, and when they ended (Unix time), oldest first."""
        matches = map(_ENDED_NAME.match, self._store.files_after(_ENDED, "", limit))
        return [(m.group(2), float(m.group(1))) for m in matches if m]

    def sort_in(self, job_id: str, state: JobState) -> None:
        """Keep a job among the open ones until it is over, then among the ended; repeatable."""
        if not state.is_over:
            self._store.write(f"{_OPEN}/{job_id}", b"")
            return
        self._claims.forget(job_id)
        self._store.write(self._ended_name(job_id, state.finished_at or 0.0), b"")
        self.remove_open_mark(job_id)

    def remove_open_mark(self, job_id: str) -> None:
        """Say that there is nothing to do for a job."""
        self._store.remove_file(f"{_OPEN}/{job_id}")

    def sort_in_all(self, max_open: int) -> None:
        """`sort_in` for jobs of a version that did not, and for what a dead runner left between."""
        ended_ids = {job_id for job_id, _ in self.list_ended(_ALL)}
        job_ids = {n for n in self._store.names() if re.fullmatch(JOB_PATTERN, n)}
        for job_id in job_ids - ended_ids - set(self.list_open_ids(max_open)):
            with contextlib.suppress(APIError):
                self.sort_in(job_id, self.read_state(job_id))

    def add(self, record: JobRecord, upload: Upload | None) -> None:
        """A new job: that it is open is written last, and makes it count."""
        if upload is not None:
            self._store.write(f"{record.id}/image", upload.image)
            if upload.mask is not None:
                self._store.write(f"{record.id}/mask", upload.mask)
        self._store.write(f"{record.id}/request.json", record.model_dump_json().encode())
        state = JobState(webhook="pending" if record.webhook_url else None)
        self.set_state(record.id, state)
        self.sort_in(record.id, state)

    def read_record(self, job_id: str) -> JobRecord:
        """raises APIError 404 if there is no such job."""
        if not re.fullmatch(JOB_PATTERN, job_id):
            raise job_not_found_error(job_id)
        try:
            return JobRecord.model_validate_json(self._store.read(f"{job_id}/request.json"))
        except (FileNotFoundError, ValueError) as error:
            raise job_not_found_error(job_id) from error

    def read_upload(self, job_id: str) -> Upload | None:
        """Its uploads."""
        try:
            image = self._store.read(f"{job_id}/image")
        except FileNotFoundError:
            return None
        mask = None
        with contextlib.suppress(FileNotFoundError):
            mask = self._store.read(f"{job_id}/mask")
        return Upload(image, mask)

    def read_state(self, job_id: str) -> JobState:
        """raises APIError 404."""
        try:
            return JobState.model_validate_json(self._store.read(f"{job_id}/state.json"))
        except (FileNotFoundError, ValueError) as error:
            raise job_not_found_error(job_id) from error

    def set_state(self, job_id: str, state: JobState) -> None:
        """Replace it; a job that is over with that is open no longer."""
        self._store.write(f"{job_id}/state.json", state.model_dump_json().encode())
        if state.is_over:
            self.sort_in(job_id, state)

    def set_progress(self, job_id: str, step: int, total: int, previews: dict[int, bytes]) -> None:
        """Write the steps of all its images, and new previews."""
        for index, data in previews.items():
            self._store.write(f"{job_id}/preview-{index}.png", data)
        text = json.dumps({"step": step, "total": total})
        self._store.write(f"{job_id}/progress.json", text.encode())

    def finish_image(
        self, job_id: str, index: int, encoded_image: EncodedImage, suffix: str
    ) -> None:
        """Image first, receipt last: the receipt makes it count."""
        self._store.write(f"{job_id}/{index}.{suffix}", encoded_image.data)
        self._store.write(
            f"{job_id}/{index}.json", encoded_image.receipt.model_dump_json().encode()
        )

    def finished_images(self, job_id: str) -> list[int]:
        """Indices of its finished images."""
        matches = (re.fullmatch(r"(\d{1,3})\.json", name) for name in self._store.names(job_id))
        return sorted(int(m.group(1)) for m in matches if m)

    def read_file(self, job_id: str, name: str) -> bytes:
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

    def claim(self, job_id: str, lease_s: float) -> Lease | None:
        """Become its runner, if it has none that may live; one of several callers wins."""
        return self._claims.claim(job_id, lease_s)

    def renew(self, lease: Lease) -> bool:
        """Show that the runner lives; False once another has taken over, or its time is up."""
        return self._claims.renew(lease)

    def forget_ended(self, before_s: float) -> None:
        """Remove jobs that ended before a time: what makes them known first, their mark last."""
        for job_id, ended_s in self.list_ended(_MOST_A_LOOK):
            if ended_s > before_s:
                return
            self._store.remove_file(f"{job_id}/request.json")
            self._store.remove(job_id)
            self._store.remove_file(self._ended_name(job_id, ended_s))

    def build_answer(self, record: JobRecord, position: int | None) -> JobAnswer:
        """As GET /v1/jobs/{id} has it."""
        state, names, progress = self.read_state(record.id), self._store.names(record.id), {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            progress = json.loads(self._store.read(f"{record.id}/progress.json"))
        suffix, finished_indices = record.request.output_format, self.finished_images(record.id)
        receipts = [self._store.read(f"{record.id}/{k}.json") for k in finished_indices]
        previews = [n for n in names if n.startswith("preview-") and _FILE.fullmatch(n)]
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
            previews=[f"/v1/jobs/{record.id}/files/{name}" for name in previews],
            images=[f"/v1/jobs/{record.id}/files/{k}.{suffix}" for k in finished_indices],
            receipts=[Receipt.model_validate_json(r) for r in receipts],
            error=state.error,
        )

    @staticmethod
    def _ended_name(job_id: str, ended_s: float) -> str:
        return f"{_ENDED}/{int(ended_s):012d}-{job_id}"


def job_not_found_error(job_id: str) -> APIError:
    """404, the same for what is not there and what is somebody else's."""
    text = f"job {job_id[:80]!r} is not known; finished jobs are kept for a while only"
    return APIError(404, "job_not_found", text)
