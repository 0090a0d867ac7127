"""What one request generates: its uploads, its tasks for the replicas, its image files."""

from dataclasses import dataclass

from serve.api_messages import ImageRequest, Receipt
from serve.auth import Caller
from serve.replica_messages import ImageSamplingTask
from serve.subject_catalog import ServedSubject


@dataclass(frozen=True)
class EditUpload:
    """The files of an edit, still encoded."""

    image: bytes
    mask: bytes | None = None


@dataclass(frozen=True)
class EncodedImage:
    """A finished image file and its receipt."""

    data: bytes
    receipt: Receipt


@dataclass(frozen=True)
class GenerationSpec:
    """A valid request with its subject, and one task for each image: nothing is sampled yet."""

    caller: Caller
    request: ImageRequest
    subject: ServedSubject
    sample_tasks: list[ImageSamplingTask]
    deadline_s: float
