"""Pages of the catalog, for callers who may see all of it and for those who may not.

Who sees a part alone has all names looked through, some thousands a page, so a page may come short
and still have a next one. Where it goes on is then a prefix of the catalog and no name, as names of
others are not told.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.catalog import Catalog, CatalogEntry, listing_position
from dreambooth_ray.storage.subject_version import is_id
from serve.auth import Caller

_LOG = logging.getLogger("dreambooth.serve")
_READERS = 16
_MOST_SCANNED, _SCAN_BATCH = 10_000, 1000
# After every id, which has no such character.
_END = "~"


def find_page_start(after: str) -> str | None:
    """Where the page after a subject, or after a prefix (`~3f`), begins; None for neither."""
    if after.startswith(_END):
        prefix = after.removeprefix(_END)
        is_prefix = len(prefix) == 2 and all(c in "0123456789abcdef" for c in prefix)
        return f"{prefix}/{_END}" if is_prefix else None
    return listing_position(after) if is_id(after) else None


class SubjectPages:
    """Reads pages. Blocking: call it from a thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pool = ThreadPoolExecutor(_READERS, "subject-pages")

    def read_entries(self, subjects: list[str]) -> list[CatalogEntry]:
        """Their entries, without those that can't be read or have gone meanwhile."""
        return [entry for entry in self._pool.map(self._read_entry, subjects) if entry is not None]

    def _read_entry(self, subject: str) -> CatalogEntry | None:
        try:
            return self._catalog.read(subject)
        except FileNotFoundError:
            return None
        except CheckpointError:
            _LOG.warning("subjects.entry_unreadable", extra={"subject": subject})
            return None

    def list_subjects(
        self, start: str, limit: int, caller: Caller, is_hidden: Callable[[str], bool]
    ) -> tuple[list[str], str | None]:
        """Up to `limit` subjects from a position on, and what to give as `after` for more.

        The second is None if there are no more, and "" if there are and no subject was asked for.
        """

        def may_see(subject: str) -> bool:
            return caller.may_see(subject) and not is_hidden(subject)

        if caller.exact_subjects is not None:
            subjects = [s for s in caller.exact_subjects if is_id(s) and may_see(s)]
            subjects = sorted(
                {s for s in subjects if listing_position(s) > start}, key=listing_position
            )
            return _cut_page(subjects, limit) if len(subjects) > limit else (subjects, None)
        return self._scan_subjects(
            start, limit, limit + 1 if caller.sees_all else _SCAN_BATCH, may_see
        )

    def _scan_subjects(
        self, start: str, limit: int, batch_size: int, may_see: Callable[[str], bool]
    ) -> tuple[list[str], str | None]:
        subjects, scan_position, num_scanned = list[str](), start, 0
        while True:
            subject_batch = self._catalog.list_subjects(scan_position, batch_size)
            subjects += filter(may_see, subject_batch)
            num_scanned += len(subject_batch)
            if len(subjects) > limit:
                return _cut_page(subjects, limit)
            if len(subject_batch) < batch_size:
                return subjects, None
            scan_position = listing_position(subject_batch[-1])
            # The prefix that the batch ends in is looked through anew by the next page.
            unfinished_prefix = int(scan_position.partition("/")[0], 16)
            after = f"{_END}{unfinished_prefix - 1:02x}"
            if (
                num_scanned >= _MOST_SCANNED
                and unfinished_prefix
                and (find_page_start(after) or "") > start
            ):
                return [
                    s for s in subjects if listing_position(s) < f"{unfinished_prefix:02x}/"
                ], after


def _cut_page(subjects: list[str], limit: int) -> tuple[list[str], str]:
    return subjects[:limit], subjects[limit - 1] if limit else ""
