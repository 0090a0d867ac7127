"""When a runner looks into storage again: soon while there is work, seldom without."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

_LOG = logging.getLogger("dreambooth.serve")


@contextlib.contextmanager
def log_and_suppress_failure(event: str) -> Iterator[None]:
    """Log what goes wrong in the block and go on: storage that is away comes back."""
    try:
        yield
    except Exception as error:
        _LOG.warning(event, extra={"error": type(error).__name__})


class PollTimer:
    """Waits between two looks.

    busy_s, idle_s: seconds between two looks with work, and without
    """

    def __init__(self, busy_s: float, idle_s: float) -> None:
        self._busy_s, self._idle_s = busy_s, idle_s
        self._work_event = asyncio.Event()

    def wake(self) -> None:
        """Say that there is work: the next look comes soon."""
        self._work_event.set()

    async def wait(self, has_work: bool) -> None:
        """Return when it is time to look."""
        if not has_work:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_s):
                    await self._work_event.wait()
        had_no_work = not has_work and not self._work_event.is_set()
        self._work_event.clear()
        if not had_no_work:
            await asyncio.sleep(self._busy_s)
