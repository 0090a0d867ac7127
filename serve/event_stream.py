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
from serve.image_service import ImageService, Order, Rendered
from serve.replica_messages import Event, Preview, Progress

_QUIET_S = 5.0
Kind = Literal["image_generation", "image_edit"]


class StreamedAnswer(StreamingResponse):
    """Gives the places back even if its reader is gone before the first word."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], turns: list[Reservation]) -> None:
        super().__init__(events)
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette's."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for turn in self._turns:
                turn.close()


async def stream(
    studio: ImageService, order: Order, turns: list[Reservation], kind: Kind
) -> AsyncIterator[str]:
    """Partial images, then the completed one, or an error; comments tell of steps between.

    When the reader goes away the drawing is cancelled.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    work = asyncio.create_task(
        studio.draw_in_time(order, turns, lambda _, event: events.put_nowait(event))
    )
    work.add_done_callback(lambda _: events.put_nowait(None))
    shown = 0
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), _QUIET_S)
            except TimeoutError:
                yield f": position {turns[0].position}\n\n"
                continue
            if event is None:
                break
            if isinstance(event, Progress):
                yield f": step {event.step} of {event.total}\n\n"
            # A drawing begun anew on another replica shows its first steps again.
            if isinstance(event, Preview) and shown < order.request.partial_images:
                yield _sse(f"{kind}.partial_image", await _partial(order, event, shown))
                shown += 1
        yield _last(studio, order, kind, work)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def _last(
    studio: ImageService, order: Order, kind: Kind, work: "asyncio.Task[list[Rendered]]"
) -> str:
    error = work.exception()
    if isinstance(error, APIError):
        studio.count_refusal(error)
        return _sse("error", error.body)
    if error is not None:
        raise error
    rendered = work.result()[0]
    data = _about(order, rendered.data, f"{rendered.receipt.width}x{rendered.receipt.height}")
    return _sse(f"{kind}.completed", data | {"receipt": rendered.receipt.model_dump()})


async def _partial(order: Order, event: Preview, index: int) -> dict[str, Any]:
    request = order.request
    data = await asyncio.to_thread(
        image_files.encode, event.pixels, None, request.output_format, request.output_compression
    )
    size = f"{event.pixels.width_px}x{event.pixels.height_px}"
    return _about(order, data, size) | {"partial_image_index": index}


def _about(order: Order, data: bytes, size: str) -> dict[str, Any]:
    return {
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "opaque",
        "output_format": order.request.output_format,
    }


def _sse(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n"
