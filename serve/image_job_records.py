"""What a job is and where it stands, as storage keeps it."""

import hashlib
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict

from dreambooth_ray.queue.work_records import WorkRecord, validate_owner_name
from serve.api_messages import EditRequest, GenerationRequest, JobStatus


class ImageJobRecord(BaseModel):
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
        image_request = self.generation or self.edit
        if image_request is None:
            raise ValueError(f"job {self.id} asks for nothing")
        return image_request

    def make_queue_record(self) -> WorkRecord:
        """As a queue has it."""
        return WorkRecord(
            id=self.id,
            owner=_make_queue_owner(self.caller),
            payload=self.model_dump_json(),
            created_ms=int(self.created_at * 1000),
            # Whoever puts a job in twice means the same one.
            nonce="",
        )


class ImageJobState(BaseModel):
    """Where a job stands; written by its runner alone."""

    model_config = ConfigDict(frozen=True)

    status: JobStatus = "queued"
    finished_at: float | None = None
    error: dict[str, Any] | None = None
    webhook: str | None = None

    @property
    def has_ended_and_notified(self) -> bool:
        """Whether nothing is left to do, word to the webhook included."""
        return self.finished_at is not None and self.webhook != "pending"


def new_image_job_id() -> str:
    """Not to be guessed."""
    return f"job_{uuid.uuid4().hex}"


def parse_image_job_record(work: WorkRecord) -> ImageJobRecord:
    """The job that a queue's work is; raises ValueError if it is none."""
    return ImageJobRecord.model_validate_json(work.payload)


def _make_queue_owner(caller: str) -> str:
    """A caller as the owner of work: names of any length, but no longer than a folder's."""
    try:
        validate_owner_name(caller)
    except ValueError:
        return hashlib.sha256(caller.encode()).hexdigest()
    return caller
