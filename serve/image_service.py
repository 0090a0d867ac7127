"""An order's way: subject, policy, admission, drawing, check, receipt. No HTTP in here."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from dreambooth_ray.config.serving import ServeConfig
from serve import image_files
from serve.admission import Reservation
from serve.api_errors import APIError, busy
from serve.api_messages import Drawable, EditRequest, Receipt
from serve.auth import Caller
from serve.gateway_metrics import Metrics
from serve.replica_messages import Drawing, Event, Failed, Finished, Pixels, Preview
from serve.replica_pool import ReplicaPool
from serve.safety import Verdict
from serve.subject_catalog import Catalog, ServedSubject

_LOG = logging.getLogger("dreambooth.serve")
DEFAULT_POOL = "Replica"
_WATCHED_S, _UNWATCHED_S = 0.2, 1.0
_FAILURES = {"config": (400, "invalid_value"), "damaged": (422, "model_damaged")}


class Checks(Protocol):
    """What is not drawn: see serve/safety.py."""

    def check_prompt(self, text: str) -> Verdict:
        """Before admission."""

    def check_image(self, image: Image.Image) -> Verdict:
        """Before an image is handed out."""


class Sealing(Protocol):
    """Provenance: see serve/provenance.py."""

    def sign(self, png_bytes: bytes, receipt: dict[str, object]) -> bytes:
        """The same image with a signed manifest."""


@dataclass(frozen=True)
class Upload:
    """The files of an edit, still encoded."""

    image: bytes
    mask: bytes | None = None


@dataclass(frozen=True)
class Rendered:
    """A finished image file and its receipt."""

    data: bytes
    receipt: Receipt


@dataclass(frozen=True)
class Order:
    """What was asked, resolved and found good: nothing is drawn yet."""

    caller: Caller
    request: Drawable
    subject: ServedSubject
    drawings: list[Drawing]
    deadline_s: float

    @property
    def costs(self) -> list[int]:
        """Steps of each image."""
        return [d.steps for d in self.drawings]


OnEvent = Callable[[int, Event], None]


class ImageService:
    """Draws orders with the pools there are."""

    def __init__(
        self,
        config: ServeConfig,
        catalog: Catalog,
        pools: dict[str, ReplicaPool],
        metrics: Metrics,
        checks: Checks | None = None,
        sealing: Sealing | None = None,
    ) -> None:
        """pools: by subject name; DEFAULT_POOL is for all without one of their own."""
        self._config, self._catalog, self._pools = config, catalog, pools
        self._metrics, self._checks, self._sealing = metrics, checks, sealing

    async def order(self, caller: Caller, request: Drawable, upload: Upload | None = None) -> Order:
        """Look at a request; raises Refusal for all that is wrong with it."""
        self._check_bounds(request)
        subject = await self._catalog.resolve(request.model, caller.may_see)
        await self._check_prompt(request)
        seed = request.seed if request.seed is not None else secrets.randbelow(2**32)
        width_px, height_px = request.size_px or (None, None)
        first = Drawing(
            request.prompt, seed, request.negative_prompt, request.num_inference_steps,
            request.guidance_scale, request.solver, width_px, height_px,
            num_previews=request.partial_images,
            # Each word costs both sides a message: often only where somebody watches.
            tell_every_s=_WATCHED_S if request.stream else _UNWATCHED_S,
        )  # fmt: skip
        if upload is not None and isinstance(request, EditRequest):
            first = await asyncio.to_thread(self._with_upload, first, upload, request)
        drawings = [replace(first, seed=seed + k) for k in range(request.n)]
        deadline_s = min(request.deadline_s or float("inf"), self._config.limits.deadline_s)
        return Order(caller, request, subject, drawings, deadline_s)

    def _check_bounds(self, request: Drawable) -> None:
        limits, side = self._config.limits, max(request.size_px or (0, 0))
        longest = max(len(request.prompt), len(request.negative_prompt))
        asked = (
            ("n", request.n, limits.images),
            ("num_inference_steps", request.num_inference_steps, limits.steps),
            ("size", side, limits.side_px),
            ("prompt", longest, limits.prompt_characters),
        )
        for param, value, most in asked:
            if value > most:
                text = f"{param} is {value} and at most {most} is taken here"
                raise APIError(400, "above_limit", text, param=param)
        if request.size_px and any(s % 8 for s in request.size_px):
            text = f"size={request.size} must be multiples of 8"
            raise APIError(400, "invalid_value", text, param="size")

    async def _check_prompt(self, request: Drawable) -> None:
        if self._checks is None:
            return
        # What an image is kept away from may be named: "nude" in there is a wish to see none.
        verdict = await asyncio.to_thread(self._checks.check_prompt, request.prompt)
        if verdict.refused:
            raise _against_policy(verdict, "prompt")

    def _with_upload(self, drawing: Drawing, upload: Upload, request: EditRequest) -> Drawing:
        most = self._config.limits.upload_px
        image = image_files.start_pixels(upload.image, request.size_px, most)
        mask = None
        if upload.mask is not None:
            mask = image_files.mask_pixels(upload.mask, (image.width_px, image.height_px), most)
        side = self._config.limits.side_px
        if max(image.width_px, image.height_px) > side or image.width_px % 8 or image.height_px % 8:
            raise APIError(
                400, "invalid_value",
                f"image has {image.width_px}x{image.height_px} pixels; give a size in multiples of "
                f"8, {side} at most, or send such an image",
                param="image",
            )  # fmt: skip
        return replace(
            drawing, image=image, mask=mask, strength=request.strength,
            width_px=image.width_px, height_px=image.height_px,
        )  # fmt: skip

    def count_refusal(self, refusal: APIError) -> None:
        """Note one that the HTTP side does not see: in a stream that has begun, or of a job."""
        self._metrics.refusals.labels(refusal.code).inc()

    def pool(self, subject: ServedSubject) -> ReplicaPool:
        """Where a subject is drawn."""
        return self._pools.get(subject.name, self._pools[DEFAULT_POOL])

    def enter(self, order: Order, *, within_deadline: bool = True) -> list[Reservation]:
        """Admit all images of an order, or none.

        raises: Refusal 503 with Retry-After
        """
        deadline_s = order.deadline_s if within_deadline else float("inf")
        return self.pool(order.subject).desk.enter(order.caller.id, order.costs, deadline_s)

    async def draw(
        self, order: Order, turns: list[Reservation], on_event: OnEvent = lambda index, event: None
    ) -> list[Rendered]:
        """Draw admitted images, all at once; on_event(k, event) tells of image k.

        raises: Refusal; when one image fails the others' places are given back
        """
        work = [
            asyncio.create_task(self._one(order, k, turn, on_event)) for k, turn in enumerate(turns)
        ]
        try:
            return list(await asyncio.gather(*work))
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            for turn in turns:
                turn.close()

    async def draw_in_time(
        self, order: Order, turns: list[Reservation], on_event: OnEvent = lambda index, event: None
    ) -> list[Rendered]:
        """As `draw`, and given up at the order's deadline with a Refusal 503."""
        try:
            async with asyncio.timeout(order.deadline_s):
                return await self.draw(order, turns, on_event)
        except TimeoutError as error:
            desk = self.pool(order.subject).desk
            again_s = desk.estimate_s(order.caller.id, order.costs)
            text = f"not done within {order.deadline_s:g} s; come again"
            raise busy(text, max(1.0, again_s), "deadline_exceeded") from error

    async def _one(
        self, order: Order, index: int, turn: Reservation, on_event: OnEvent
    ) -> Rendered:
        drawing, pool, started_s = order.drawings[index], self.pool(order.subject), time.monotonic()
        finished: Finished | None = None
        shown = False
        async with turn:
            events = pool.draw(order.subject.artifact, drawing, turn)
            try:
                async for event in events:
                    if isinstance(event, Failed):
                        raise _failed(event)
                    if isinstance(event, Preview) and not await self._may_be_seen(event):
                        continue
                    if isinstance(event, Preview) and not shown:
                        shown = True
                        self._metrics.first_preview.observe(time.monotonic() - started_s)
                    if isinstance(event, Finished):
                        finished = event
                    else:
                        on_event(index, event)
            finally:
                await events.aclose()  # type: ignore[attr-defined]
        if finished is None:
            raise busy("the replica gave no image; come again", 5.0, "replica_died")
        rendered = await asyncio.to_thread(self._render, order, drawing, finished)
        self._metrics.images.labels(order.subject.name).inc()
        self._metrics.latency.labels(order.subject.name).observe(time.monotonic() - started_s)
        on_event(index, finished)
        return rendered

    async def _may_be_seen(self, preview: Preview) -> bool:
        """Whether a look on the way passes the check that the image will have to pass."""
        if self._checks is None:
            return True
        image = preview.pixels.image()
        return not (await asyncio.to_thread(self._checks.check_image, image)).refused

    def _render(self, order: Order, drawing: Drawing, finished: Finished) -> Rendered:
        if self._checks is not None:
            verdict = self._checks.check_image(finished.pixels.image())
            if verdict.refused:
                raise _against_policy(verdict, "image")
        receipt = _receipt(order.subject.id, drawing, finished)
        request = order.request
        data = image_files.encode(
            finished.pixels, receipt, request.output_format, request.output_compression
        )
        if self._sealing is not None:
            data = self._sealing.sign(data, receipt.model_dump(exclude_none=True))
        return Rendered(data, receipt)


def _receipt(model: str, drawing: Drawing, finished: Finished) -> Receipt:
    pixels: Pixels = finished.pixels
    return Receipt(
        model=model,
        weights_sha256=finished.weights_sha256,
        base_sha256=finished.base_sha256,
        prompt=drawing.prompt,
        negative_prompt=drawing.negative_prompt,
        seed=drawing.seed,
        solver=drawing.solver,
        num_inference_steps=drawing.num_inference_steps,
        guidance_scale=drawing.guidance_scale,
        width=pixels.width_px,
        height=pixels.height_px,
        strength=drawing.strength if drawing.image is not None else None,
        image_sha256=image_files.sha256(drawing.image),
        mask_sha256=image_files.sha256(drawing.mask),
    )


def _failed(event: Failed) -> APIError:
    if event.kind in _FAILURES:
        status, code = _FAILURES[event.kind]
        param = "model" if event.kind == "damaged" else None
        return APIError(status, code, event.message, param=param)
    if event.kind == "capacity":
        return busy(event.message, 5.0, "no_capacity")
    _LOG.error("studio.failed", extra={"error": event.message})
    return APIError(500, "internal_error", "drawing failed; the request id is in the logs")


def _against_policy(verdict: Verdict, param: str) -> APIError:
    shown = ("category", "score", "spans", "fingerprint")
    details = {field: getattr(verdict, field) for field in shown}
    what = "the image drawn" if param == "image" else param
    text = f"{what} is against the policy of this endpoint: {verdict.category}"
    return APIError(400, "content_policy_violation", text, param=param, details=details)
