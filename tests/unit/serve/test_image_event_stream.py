"""Streams whose reader is gone before they begin."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.types import Message

from serve.admission import AdmissionController, RequestWork
from serve.image_event_stream import EventStreamResponse


def test_a_reader_who_never_came_holds_no_place() -> None:
    async def events() -> AsyncIterator[str]:
        raise AssertionError("nobody reads this")
        yield ""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise OSError("gone")

    async def story() -> None:
        admission = AdmissionController(batch=1, max_open=10)
        admission.set_pool_speed(1, 100.0)
        response = EventStreamResponse(events(), admission.admit("a", RequestWork([25]), 100))
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with suppress(Exception):
            await response(scope, receive, send)
        assert (len(admission.queue), len(admission.in_hand)) == (0, 0)

    asyncio.run(story())
