"""An image request from start to end: subject, policy, admission, sampling, check, receipt.

No HTTP in here.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from PIL import Image

from dreambooth_ray.config.serving import ServeConfig
from serve import image_files
from serve.adapter_choices import resolve_adapters
from serve.admission import RequestWork, Reservation
from serve.api_errors import APIError, busy_error
from serve.api_messages import EditRequest, ImageRequest
from serve.auth import Caller
from serve.gateway_metrics import Metrics
from serve.generation_spec import EditUpload, EncodedImage, GenerationSpec
from serve.image_receipts import build_receipt
from serve.replica_messages import (
    Event,
    Failed,
    Finished,
    ImageSamplingTask,
    Preview,
)
from serve.replica_pool import ReplicaPool
from serve.safety import SafetyResult
from serve.subject_catalog import ServedSubject, SubjectCatalog

_LOG = logging.getLogger("dreambooth.serve")
DEFAULT_POOL = "Replica"
_STREAM_PROGRESS_S, _PROGRESS_S = 0.2, 1.0
_FAILURES = {"config": (400, "invalid_value"), "damaged": (422, "model_damaged")}


class SafetyChecks(Protocol):
    """Checks of prompts and images: see serve/safety.py."""

    def check_prompt(self, text: str) -> SafetyResult:
        """Before admission."""

    def check_image(self, image: Image.Image) -> SafetyResult:
        """Before an image is handed out."""


class ProvenanceSigner(Protocol):
    """Signs images: see serve/provenance.py."""

    def sign(self, png_bytes: bytes, receipt: dict[str, object]) -> bytes:
        """The same image with a signed manifest."""


OnEvent = Callable[[int, Event], None]


class ImageService:
    """Generates images on the pools of replicas."""

    def __init__(
        self,
        config: ServeConfig,
        catalog: SubjectCatalog,
        pools: dict[str, ReplicaPool],
        metrics: Metrics,
        checks: SafetyChecks | None = None,
        signer: ProvenanceSigner | None = None,
    ) -> None:
        """pools: by subject name; DEFAULT_POOL is for all without one of their own."""
        self._config, self._catalog, self._pools = config, catalog, pools
        self._metrics, self._checks, self._signer = metrics, checks, signer

    async def resolve_request(
        self, caller: Caller, request: ImageRequest, upload: EditUpload | None = None
    ) -> GenerationSpec:
        """Check a request and find its subject; raises APIError for all that is wrong with it."""
        self._check_request_limits(request)
        subject = await self._catalog.resolve_served_subject(request.model, caller.may_see_subject)
        await self._check_prompt(request)
        seed = request.seed if request.seed is not None else secrets.randbelow(2**32)
        width_px, height_px = request.size_px or (None, None)
        first_task = ImageSamplingTask(
            request.prompt, seed, request.negative_prompt, request.sampling_params,
            width_px, height_px,
            adapters=await resolve_adapters(self._catalog, caller, request.adapters),
            num_previews=request.partial_images,
            # Each report is a message between two processes: often only where somebody watches.
            progress_interval_s=_STREAM_PROGRESS_S if request.stream else _PROGRESS_S,
        )  # fmt: skip
        if upload is not None and isinstance(request, EditRequest):
            first_task = await asyncio.to_thread(self._add_edit_images, first_task, upload, request)
        sample_tasks = [replace(first_task, seed=seed + k) for k in range(request.n)]
        deadline_s = min(request.deadline_s or float("inf"), self._config.limits.deadline_s)
        return GenerationSpec(caller, request, subject, sample_tasks, deadline_s)

    def _check_request_limits(self, request: ImageRequest) -> None:
        limits, longest_side_px = self._config.limits, max(request.size_px or (0, 0))
        longest_prompt_characters = max(len(request.prompt), len(request.negative_prompt))
        values_and_limits = (
            ("n", request.n, limits.images),
            ("num_inference_steps", request.num_inference_steps, limits.steps),
            ("size", longest_side_px, limits.side_px),
            ("prompt", longest_prompt_characters, limits.prompt_characters),
            ("adapters", len(request.adapters), limits.adapters),
        )
        for field_name, value, limit in values_and_limits:
            if value > limit:
                error_message = f"{field_name} is {value} and at most {limit} is taken here"
                raise APIError(400, "above_limit", error_message, param=field_name)
        if request.size_px and any(s % 8 for s in request.size_px):
            error_message = f"size={request.size} must be multiples of 8"
            raise APIError(400, "invalid_value", error_message, param="size")

    async def _check_prompt(self, request: ImageRequest) -> None:
        if self._checks is None:
            return
        # What an image is kept away from may be named: "nude" in there is a wish to see none.
        safety_result = await asyncio.to_thread(self._checks.check_prompt, request.prompt)
        if safety_result.refused:
            raise _policy_error(safety_result, "prompt")

    def _add_edit_images(
        self, sample_task: ImageSamplingTask, upload: EditUpload, request: EditRequest
    ) -> ImageSamplingTask:
        max_px = self._config.limits.upload_px
        image = image_files.read_start_image(upload.image, request.size_px, max_px)
        mask = None
        if upload.mask is not None:
            mask = image_files.read_mask(upload.mask, (image.width_px, image.height_px), max_px)
        max_side_px = self._config.limits.side_px
        if (
            max(image.width_px, image.height_px) > max_side_px
            or image.width_px % 8
            or image.height_px % 8
        ):
            raise APIError(
                400, "invalid_value",
                f"image has {image.width_px}x{image.height_px} pixels; give a size in multiples of "
                f"8, {max_side_px} at most, or send such an image",
                param="image",
            )  # fmt: skip
        return replace(
            sample_task, image=image, mask=mask, strength=request.strength,
            width_px=image.width_px, height_px=image.height_px,
        )  # fmt: skip

    def count_refusal(self, api_error: APIError) -> None:
        """Count one that the HTTP side does not see: in a stream that has begun, or of a job."""
        self._metrics.refusals.labels(api_error.code).inc()

    def find_pool(self, subject: ServedSubject) -> ReplicaPool:
        """The pool that samples a subject."""
        return self._pools.get(subject.name, self._pools[DEFAULT_POOL])

    def admit(self, spec: GenerationSpec, *, within_deadline: bool = True) -> list[Reservation]:
        """Admit all images of a request, or none.

        raises: APIError 503 with Retry-After
        """
        deadline_s = spec.deadline_s if within_deadline else float("inf")
        admission, work = self.find_pool(spec.subject).admission, self._measure_work(spec)
        return admission.admit(spec.caller.id, work, deadline_s)

    def _measure_work(self, spec: GenerationSpec) -> RequestWork:
        # All images of a request have one size.
        first_task, pool = spec.sample_tasks[0], self.find_pool(spec.subject)
        step_cost = pool.relative_step_cost(spec.subject.artifact, first_task)
        steps_per_image = [task.steps for task in spec.sample_tasks]
        return RequestWork(steps_per_image, step_cost, first_task.size_px)

    async def generate_images(
        self,
        spec: GenerationSpec,
        reservations: list[Reservation],
        on_event: OnEvent = lambda index, event: None,
    ) -> list[EncodedImage]:
        """Sample admitted images, all at once; on_event(k, event) is called for image k.

        raises: APIError; when one image fails the others' places are given back
        """
        image_tasks = [
            asyncio.create_task(self._generate_image(spec, k, reservation, on_event))
            for k, reservation in enumerate(reservations)
        ]
        try:
            return list(await asyncio.gather(*image_tasks))
        finally:
            for image_task in image_tasks:
                image_task.cancel()
            await asyncio.gather(*image_tasks, return_exceptions=True)
            for reservation in reservations:
                reservation.close()

    async def generate_before_deadline(
        self,
        spec: GenerationSpec,
        reservations: list[Reservation],
        on_event: OnEvent = lambda index, event: None,
    ) -> list[EncodedImage]:
        """As `generate_images`; at the deadline it gives up with an APIError 503."""
        try:
            async with asyncio.timeout(spec.deadline_s):
                return await self.generate_images(spec, reservations, on_event)
        except TimeoutError as error:
            admission = self.find_pool(spec.subject).admission
            retry_after_s = admission.estimate_completion_s(
                spec.caller.id, self._measure_work(spec)
            )
            error_message = f"not done within {spec.deadline_s:g} s; come again"
            raise busy_error(error_message, max(1.0, retry_after_s), "deadline_exceeded") from error

    async def _generate_image(
        self, spec: GenerationSpec, index: int, reservation: Reservation, on_event: OnEvent
    ) -> EncodedImage:
        sample_task, pool, started_s = (
            spec.sample_tasks[index],
            self.find_pool(spec.subject),
            time.monotonic(),
        )
        finished_event: Finished | None = None
        has_sent_preview = False
        async with reservation:
            events = pool.sample(spec.subject.artifact, sample_task, reservation)
            try:
                async for event in events:
                    if isinstance(event, Failed):
                        raise _failure_error(event)
                    if isinstance(event, Preview) and not await self._is_preview_allowed(event):
                        continue
                    if isinstance(event, Preview) and not has_sent_preview:
                        has_sent_preview = True
                        self._metrics.first_preview.observe(time.monotonic() - started_s)
                    if isinstance(event, Finished):
                        finished_event = event
                    else:
                        on_event(index, event)
            finally:
                await events.aclose()  # type: ignore[attr-defined]
        if finished_event is None:
            raise busy_error("the replica gave no image; come again", 5.0, "replica_died")
        encoded_image = await asyncio.to_thread(
            self._check_and_encode_image, spec, sample_task, finished_event
        )
        self._metrics.images.labels(spec.subject.name).inc()
        self._metrics.latency.labels(spec.subject.name).observe(time.monotonic() - started_s)
        on_event(index, finished_event)
        return encoded_image

    async def _is_preview_allowed(self, preview: Preview) -> bool:
        """Whether a preview passes the check that the image will have to pass."""
        if self._checks is None:
            return True
        image = preview.pixels.to_pil_image()
        return not (await asyncio.to_thread(self._checks.check_image, image)).refused

    def _check_and_encode_image(
        self, spec: GenerationSpec, sample_task: ImageSamplingTask, finished: Finished
    ) -> EncodedImage:
        if self._checks is not None:
            safety_result = self._checks.check_image(finished.pixels.to_pil_image())
            if safety_result.refused:
                raise _policy_error(safety_result, "image")
        receipt = build_receipt(spec.subject.id, sample_task, finished)
        image_request = spec.request
        image_bytes = image_files.encode_image(
            finished.pixels, receipt, image_request.output_format, image_request.output_compression
        )
        if self._signer is not None:
            image_bytes = self._signer.sign(image_bytes, receipt.model_dump(exclude_none=True))
        return EncodedImage(image_bytes, receipt)


def _failure_error(event: Failed) -> APIError:
    if event.kind in _FAILURES:
        http_status, code = _FAILURES[event.kind]
        error_param = "model" if event.kind == "damaged" else None
        return APIError(http_status, code, event.message, param=error_param)
    if event.kind == "capacity":
        return busy_error(event.message, 5.0, "no_capacity")
    _LOG.error("image.failed", extra={"error": event.message})
    return APIError(500, "internal_error", "drawing failed; the request id is in the logs")


def _policy_error(safety_result: SafetyResult, param: str) -> APIError:
    detail_fields = ("category", "score", "spans", "fingerprint")
    error_details = {field: getattr(safety_result, field) for field in detail_fields}
    refused_content = "the image drawn" if param == "image" else param
    error_message = (
        f"{refused_content} is against the policy of this endpoint: {safety_result.category}"
    )
    return APIError(
        400, "content_policy_violation", error_message, param=param, details=error_details
    )
