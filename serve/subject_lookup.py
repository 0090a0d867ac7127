"""What storage says of a subject, remembered for moments: one request a look-up, whoever asks.

Callers who ask for the same at once share one request. Names that are not known yet have threads of
their own, few, and a queue with an end: a thousand names that do not exist cost a request each, and
who asks for a subject that is in use waits for none of them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from dreambooth_ray.errors import CheckpointError, StorageError
from dreambooth_ray.storage.subject_version import SubjectVersion
from dreambooth_ray.storage.version_catalog import (
    SubjectEntry,
    SubjectVersionCatalog,
    SubjectVersionRef,
)
from serve.api_errors import APIError, busy_error, storage_away_error
from serve.bounded_cache import BoundedCache

_LOG = logging.getLogger("dreambooth.serve")
# References to versions, over all entries: some hundred bytes each.
_KEPT_REFS, _KEPT_UNKNOWN, _KEPT_BUNDLES = 20_000, 10_000, 2_000
_THREADS, _MOST_UNKNOWN_WAITING = 8, 500
# How long a bundle is believed to be there: it goes by hand alone, its entry by a deletion.
BUNDLE_TTL_S = 30.0
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class CachedRead(Generic[_Value]):
    """value: None for what is not there; fault: why it can't be read; read_at_s: by the clock

    generation: of the look-up when the reading of an entry began
    """

    value: _Value | None
    read_at_s: float
    generation: int
    fault: str = ""


class SubjectLookup:
    """Reads entries, and manifests of bundles.

    ttl_s: how long an entry, or that there is none, is believed
    """

    def __init__(
        self,
        catalog: SubjectVersionCatalog,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog, self._ttl_s, self._clock = catalog, ttl_s, clock
        self._entries = BoundedCache[CachedRead[SubjectEntry]](_KEPT_REFS, _count_refs_in_entry)
        self._unknown = BoundedCache[CachedRead[SubjectEntry]](_KEPT_UNKNOWN)
        self._bundles = BoundedCache[CachedRead[SubjectVersion]](_KEPT_BUNDLES)
        self._known_pool = ThreadPoolExecutor(_THREADS, "known-subjects")
        self._unknown_pool = ThreadPoolExecutor(_THREADS, "unknown-subjects")
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._num_unknown_waiting = 0
        self._generation = 0

    def invalidate_all_entries(self) -> None:
        """Believe no reading of an entry that has begun before now."""
        self._generation += 1

    async def read_entry(self, subject: str) -> SubjectEntry | None:
        """The entry of a subject; None if there is none.

        While storage does not answer, what was read before stands.
        raises: APIError 422 for an entry that can't be read, 503 if nothing was read before
        """
        cached_read = self._find_entry_even_if_stale(subject)
        if not self._is_fresh(cached_read):
            shared_task_key = f"entry {self._generation} {subject}"
            await self._share_task(shared_task_key, lambda: self._refresh_entry(subject))
            cached_read = self._find_entry_even_if_stale(subject)
        if cached_read is None:
            raise storage_away_error()
        if cached_read.fault:
            error_message = f"model={subject!r} can't be used: {cached_read.fault}"
            raise APIError(422, "model_unusable", error_message, param="model")
        return cached_read.value

    async def read_committed_version(self, ref: SubjectVersionRef) -> SubjectVersion | None:
        """What a version's run has committed, by its manifest; None if that is gone or another.

        raises: APIError 503 if storage does not answer and nothing was read before
        """
        cached_read = self._bundles.get(ref.run_id)
        is_same_version = cached_read is not None and _is_cached_version(cached_read, ref)
        max_age_s = BUNDLE_TTL_S if is_same_version else self._ttl_s
        if cached_read is None or self._clock() - cached_read.read_at_s >= max_age_s:
            await self._share_task(
                f"bundle {ref.run_id}", lambda: self._refresh_committed_version(ref.run_id)
            )
            cached_read = self._bundles.get(ref.run_id)
        if cached_read is None:
            raise storage_away_error()
        return cached_read.value if _is_cached_version(cached_read, ref) else None

    def _find_entry_even_if_stale(self, subject: str) -> CachedRead[SubjectEntry] | None:
        return self._entries.get(subject) or self._unknown.get(subject)

    def _is_fresh(self, cached_read: CachedRead[SubjectEntry] | None) -> bool:
        if cached_read is None or cached_read.generation != self._generation:
            return False
        return self._clock() - cached_read.read_at_s < self._ttl_s

    async def _share_task(self, key: str, start: Callable[[], Coroutine[None, None, None]]) -> None:
        """One piece of work for all who want the same; who goes away ends it for nobody."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(start())
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        await asyncio.shield(task)

    async def _refresh_entry(self, subject: str) -> None:
        try:
            if self._entries.get(subject) is not None:
                cached_read = await self._run_in_threads(
                    self._known_pool, lambda: self._read_entry(subject)
                )
            else:
                cached_read = await self._read_unknown_entry(subject)
        except (StorageError, OSError) as error:
            _LOG.warning("subjects.look_failed", extra={"error": type(error).__name__})
            return
        previous_read = self._find_entry_even_if_stale(subject)
        if previous_read is not None and previous_read.generation > cached_read.generation:
            return
        for cache in (self._entries, self._unknown):
            cache.drop(subject)
        is_known_subject = cached_read.value is not None or cached_read.fault
        (self._entries if is_known_subject else self._unknown).put(subject, cached_read)

    async def _read_unknown_entry(self, subject: str) -> CachedRead[SubjectEntry]:
        if self._num_unknown_waiting >= _MOST_UNKNOWN_WAITING:
            raise busy_error("many names are looked up just now; come again", 1.0)
        self._num_unknown_waiting += 1
        try:
            return await self._run_in_threads(self._unknown_pool, lambda: self._read_entry(subject))
        finally:
            self._num_unknown_waiting -= 1

    def _read_entry(self, subject: str) -> CachedRead[SubjectEntry]:
        now_s, lookup_generation = self._clock(), self._generation
        try:
            return CachedRead(self._catalog.read(subject), now_s, lookup_generation)
        except FileNotFoundError:
            return CachedRead(None, now_s, lookup_generation)
        except CheckpointError as error:
            return CachedRead(None, now_s, lookup_generation, str(error))

    async def _refresh_committed_version(self, run_id: str) -> None:
        now_s, lookup_generation = self._clock(), self._generation
        try:
            subject_version = await self._run_in_threads(
                self._known_pool, lambda: self._catalog.read_run_version(run_id)
            )
        except (StorageError, OSError) as error:
            _LOG.warning("subjects.look_failed", extra={"error": type(error).__name__})
            return
        self._bundles.put(run_id, CachedRead(subject_version, now_s, lookup_generation))

    async def _run_in_threads(self, pool: ThreadPoolExecutor, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _count_refs_in_entry(cached_read: CachedRead[SubjectEntry]) -> int:
    return 1 + (len(cached_read.value.versions) if cached_read.value else 0)


def _is_cached_version(cached_read: CachedRead[SubjectVersion], ref: SubjectVersionRef) -> bool:
    return cached_read.value is not None and cached_read.value.version == ref.version
