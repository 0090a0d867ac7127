"""Lets a training run of the product take so many steps, and wait, so that others have a turn."""

import asyncio

from benchmarks.measure import Spent


class StepGateActor:
    """A Ray actor between a run and who measures it."""

    def __init__(self) -> None:
        self._grants: asyncio.Queue[int] = asyncio.Queue()
        self._spent: asyncio.Queue[Spent | None] = asyncio.Queue()
        self._is_ready = False

    async def arrive(self, spent: Spent | None) -> int:
        """By the run: hand over what the last turn took; returns steps of the next, 0 to end."""
        await self._spent.put(spent)
        return await self._grants.get()

    async def ready(self) -> None:
        """Wait until the run is before its first step; a run that was there is ready."""
        if not self._is_ready:
            await self._spent.get()
        self._is_ready = True

    async def turn(self, steps: int) -> Spent:
        """Let it take `steps` and tell what they took."""
        await self._grants.put(steps)
        spent = await self._spent.get()
        assert spent is not None
        return spent

    async def end(self) -> None:
        """Let the run end."""
        await self._grants.put(0)
