"""Lets a training run of the product take so many steps, and wait, so that others have a turn."""

import asyncio

from benchmarks.measure import WallAndCpuTime


class StepGateActor:
    """A Ray actor between a run and the benchmark that measures it."""

    def __init__(self) -> None:
        self._grants: asyncio.Queue[int] = asyncio.Queue()
        self._elapsed: asyncio.Queue[WallAndCpuTime | None] = asyncio.Queue()
        self._is_ready = False

    async def arrive(self, elapsed: WallAndCpuTime | None) -> int:
        """Called by the run with the time of the last turn; returns steps of the next, 0 to end."""
        await self._elapsed.put(elapsed)
        return await self._grants.get()

    async def wait_until_ready(self) -> None:
        """Wait until the run is before its first step; later calls return at once."""
        if not self._is_ready:
            await self._elapsed.get()
        self._is_ready = True

    async def run_steps(self, steps: int) -> WallAndCpuTime:
        """Let the run take `steps`; returns the time they took."""
        await self._grants.put(steps)
        elapsed = await self._elapsed.get()
        assert elapsed is not None
        return elapsed

    async def end(self) -> None:
        """Let the run end."""
        await self._grants.put(0)
