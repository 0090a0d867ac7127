"""An image on its way as server-sent events, in OpenAI's names."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve import image_files
from serve.admission import Reservation
from serve.api_errors import APIError
from serve.generation_spec import EncodedImage, GenerationSpec
from serve.image_service import ImageService
from serve.replica_messages import Event, Preview, SamplingProgress

_HEARTBEAT_S = 5.0
Operation = Literal["image_generation", "image_edit"]


class EventStreamResponse(StreamingResponse):
    """Gives the places back even if its reader is gone before the first word."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], reservations: list[Reservation]) -> None:
        super().__init__(events)
        self._reservations = reservations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette's."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for reservation in self._reservations:
                reservation.close()


async def stream_image_events(
    image_service: ImageService,
    spec: GenerationSpec,
    reservations: list[Reservation],
    operation: Operation,
) -> AsyncIterator[str]:
    """Partial images, then the completed one, or an error; comments tell the steps between.

    When the reader goes away the generation is cancelled.
    """
    image_events: asyncio.Queue[Event | None] = asyncio.Queue()
    generation_task = asyncio.create_task(
        image_service.generate_before_deadline(
            spec, reservations, lambda _, event: image_events.put_nowait(event)
        )
    )
    generation_task.add_done_callback(lambda _: image_events.put_nowait(None))
    num_previews_sent = 0
    try:
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    event = await image_events.get()
            except TimeoutError:
                yield f": position {reservations[0].position}\n\n"
                continue
            if event is None:
                break
            if isinstance(event, SamplingProgress):
                yield f": step {event.step} of {event.total}\n\n"
            # An image that is sampled again on another replica shows its first steps again.
            if isinstance(event, Preview) and num_previews_sent < spec.request.partial_images:
                yield _format_sse(
                    f"{operation}.partial_image",
                    await _build_preview_data(spec, event, num_previews_sent),
                )
                num_previews_sent += 1
        yield _make_final_event(image_service, spec, operation, generation_task)
    finally:
        generation_task.cancel()
        await asyncio.gather(generation_task, return_exceptions=True)


def _make_final_event(
    image_service: ImageService,
    spec: GenerationSpec,
    operation: Operation,
    task: "asyncio.Task[list[EncodedImage]]",
) -> str:
    error = task.exception()
    if isinstance(error, APIError):
        image_service.count_refusal(error)
        return _format_sse("error", error.body)
    if error is not None:
        raise error
    encoded_image = task.result()[0]
    event_data = _build_image_data(
        spec, encoded_image.data, f"{encoded_image.receipt.width}x{encoded_image.receipt.height}"
    )
    return _format_sse(
        f"{operation}.completed", event_data | {"receipt": encoded_image.receipt.model_dump()}
    )


async def _build_preview_data(spec: GenerationSpec, event: Preview, index: int) -> dict[str, Any]:
    image_request = spec.request
    encoded_preview = await asyncio.to_thread(
        image_files.encode_image,
        event.pixels,
        None,
        image_request.output_format,
        image_request.output_compression,
    )
    image_size = f"{event.pixels.width_px}x{event.pixels.height_px}"
    return _build_image_data(spec, encoded_preview, image_size) | {"partial_image_index": index}


def _build_image_data(spec: GenerationSpec, data: bytes, size: str) -> dict[str, Any]:
    return {
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "opaque",
        "output_format": spec.request.output_format,
    }


def _format_sse(event_type: str, data: dict[str, Any]) -> str:
    return f"event: {event_type}\ndata: {json.dumps({'type': event_type} | data)}\n\n"
