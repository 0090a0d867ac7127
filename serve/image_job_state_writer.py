"""Writes where a job stands from tasks that may be cancelled meanwhile."""

import asyncio
import time

from serve.image_job_records import ImageJobState
from serve.image_job_store import ImageJobStore


async def write_state_despite_cancellation(
    job_store: ImageJobStore, job_id: str, state: ImageJobState
) -> None:
    """Write it to the end, though the task be cancelled: a thread can't be stopped half-way,
    and must not write after the one that comes next."""
    write_task = asyncio.create_task(asyncio.to_thread(job_store.set_state, job_id, state))
    try:
        await asyncio.shield(write_task)
    except asyncio.CancelledError:
        await asyncio.wait([write_task])
        raise


async def mark_image_job_cancelled(job_store: ImageJobStore, job_id: str) -> ImageJobState:
    """End a job that has not ended otherwise; returns how it ended."""
    state = await asyncio.to_thread(job_store.read_state, job_id)
    if state.finished_at is None:
        state_update = {"status": "cancelled", "finished_at": time.time()}
        state = state.model_copy(update=state_update)
        await write_state_despite_cancellation(job_store, job_id, state)
    return state
