"""Requests and answers, in the shape of OpenAI's Images API. Unknown fields are refused by name."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from dreambooth_ray.config.adapter_mix import MAX_ADAPTERS, MAX_WEIGHT
from dreambooth_ray.config.sampling_params import SamplingParams
from serve.ignored_client_fields import IgnoredClientFields

MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[0-9a-f]{12})?$"
SIZE_PATTERN = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
# Names below a folder: no part begins with a dot, so that none leads out of it.
FILE_PATTERN = r"^([A-Za-z0-9_][A-Za-z0-9 _.+-]*/)*[A-Za-z0-9_][A-Za-z0-9 _.+-]*\.safetensors$"
JOB_PATTERN = r"^job_[0-9a-f]{32}$"
# Control characters have no meaning in a prompt and break the formats it is written into.
_NO_CONTROLS = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$"

Model = Annotated[str, StringConstraints(pattern=MODEL_PATTERN)]
Prompt = Annotated[str, StringConstraints(pattern=_NO_CONTROLS, max_length=10_000)]


class RequestBase(BaseModel):
    """Base of requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _parse_json_list(value: object) -> object:
    """A list written as text: form fields have no lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON list") from error


class AdapterChoice(RequestBase):
    """One adapter of a request: of another subject on the same base, or of a file."""

    model: Model | None = Field(None, description="a subject with adapters, on the same base model")
    file: Annotated[str, StringConstraints(pattern=FILE_PATTERN, max_length=200)] | None = Field(
        None, description="a name below the folder that the operator has set"
    )
    weight: float = Field(
        1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False, description="of what it adds"
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="as receipts have it; other weights are refused"
    )

    @model_validator(mode="after")
    def _check_exactly_one_source(self) -> "AdapterChoice":
        if (self.model is None) == (self.file is None):
            raise ValueError("give either model or file")
        return self


class ImageRequest(RequestBase, IgnoredClientFields, SamplingParams):
    """What generations and edits share."""

    model: Model | None = Field(None, description="subject@version, subject, or a base model")
    prompt: Annotated[Prompt, StringConstraints(min_length=1)]
    negative_prompt: Prompt = ""
    adapters: Annotated[tuple[AdapterChoice, ...], BeforeValidator(_parse_json_list)] = Field(
        (), max_length=MAX_ADAPTERS, description="added to the model, each with its weight"
    )
    n: int = Field(1, ge=1, le=100)
    size: Annotated[str, StringConstraints(pattern=SIZE_PATTERN)] = "auto"
    seed: int | None = Field(None, ge=0, lt=2**53, description="image k has seed + k")
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="url: signed, readable for a while; not for streams and jobs"
    )
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(100, ge=0, le=100, description="quality of jpeg and webp")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    deadline_s: float | None = Field(
        None, gt=0, le=86400, allow_inf_nan=False, description="refused if it can't be done by then"
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> "ImageRequest":
        if self.output_format == "png" and self.output_compression != 100:
            raise ValueError("output_compression is for output_format jpeg and webp, not png")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images needs stream=true")
        if self.stream and self.n != 1:
            raise ValueError("n must be 1 with stream=true; send one request an image")
        return self

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Width and height, or None for the model's own."""
        if self.size == "auto":
            return None
        width, height = re.split("x", self.size)
        return int(width), int(height)


class GenerationRequest(ImageRequest):
    """Body of POST /v1/images/generations."""


class EditRequest(ImageRequest):
    """Fields of POST /v1/images/edits, beside the files `image` and `mask`."""

    strength: float = Field(0.8, gt=0, le=1, allow_inf_nan=False)


class JobRequest(GenerationRequest):
    """Body of POST /v1/jobs as JSON; with an image, the same fields as a form."""

    webhook_url: Annotated[str, StringConstraints(max_length=2000)] | None = None


class EditJobRequest(EditRequest):
    """Fields of POST /v1/jobs as a form."""

    webhook_url: Annotated[str, StringConstraints(max_length=2000)] | None = None


class Answer(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True)


def _mark_sampling_params_required(schema: dict[str, Any]) -> None:
    """Defaults are for receipts from before a parameter was added; new ones say them all."""
    optional_sampling_params = [
        name for name in SamplingParams.model_fields if name not in schema["required"]
    ]
    schema["required"] = [*schema["required"], *optional_sampling_params]


class AdapterReceipt(Answer):
    """An adapter that an image was drawn with, as a request takes it."""

    model: str | None = None
    file: str | None = None
    weight: float
    sha256: str


class Receipt(Answer, SamplingParams):
    """Everything needed to draw the image again, on the weights of these hashes."""

    model_config = ConfigDict(extra="ignore", json_schema_extra=_mark_sampling_params_required)

    model: str
    weights_sha256: str
    base_sha256: str | None = None
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    strength: float | None = None
    image_sha256: str | None = Field(None, description="of the start image's RGB bytes")
    mask_sha256: str | None = None
    adapters: list[AdapterReceipt] = []


class ImageAnswer(Answer):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    receipt: Receipt


class ImagesAnswer(Answer):
    """Answer of generations and edits."""

    created: int
    data: list[ImageAnswer]
    output_format: str
    size: str


class ModelAnswer(Answer):
    """One thing that can be drawn with."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["base", "bundle", "adapter"]
    prompt: str | None = Field(None, description="the subject's own; null for a base model")
    versions: list[str] = []


class ModelsAnswer(Answer):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
    has_more: bool = Field(False, description="whether another page follows")
    first_id: str | None = None
    last_id: str | None = Field(None, description="`after` for the next page")


JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]


class JobAnswer(Answer):
    """Where a job stands."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    created_at: float
    finished_at: float | None = None
    model: str
    n: int
    images_done: int = 0
    position: int | None = Field(None, description="images that go before it")
    step: int = 0
    total_steps: int = 0
    previews: list[str] = Field([], description="paths of images on the way")
    images: list[str] = Field([], description="paths of finished images")
    receipts: list[Receipt] = []
    error: dict[str, Any] | None = None


class ErrorAnswer(Answer):
    """The OpenAI error object."""

    error: dict[str, Any]
