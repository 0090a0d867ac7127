"""Pages of the catalog, for callers who may see all of it and for those who may not.

Who sees a part alone has all names looked through, some thousands a page, so a page may come short
and still have a next one. Where it goes on is then a prefix of the catalog and no name, as names of
others are not told.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.subject_version import is_subject_or_run_id
from dreambooth_ray.storage.version_catalog import (
    SubjectEntry,
    SubjectVersionCatalog,
    subject_listing_position,
)
from serve.auth import Caller

_LOG = logging.getLogger("dreambooth.serve")
_READERS = 16
_MOST_SCANNED, _SCAN_BATCH = 10_000, 1000
# After every id, which has no such character.
_END = "~"


def parse_page_cursor(after: str) -> str | None:
    """Where the page after a subject, or after a prefix (`~3f`), begins; None for neither."""
    if after.startswith(_END):
        prefix = after.removeprefix(_END)
        is_prefix = len(prefix) == 2 and all(c in "0123456789abcdef" for c in prefix)
        return f"{prefix}/{_END}" if is_prefix else None
    return subject_listing_position(after) if is_subject_or_run_id(after) else None


class SubjectPages:
    """Reads pages. Blocking: call it from a thread."""

    def __init__(self, catalog: SubjectVersionCatalog) -> None:
        self._catalog = catalog
        self._pool = ThreadPoolExecutor(_READERS, "subject-pages")

    def read_entries(self, subjects: list[str]) -> list[SubjectEntry]:
        """Their entries, without those that can't be read or have gone meanwhile."""
        return [entry for entry in self._pool.map(self._read_entry, subjects) if entry is not None]

    def _read_entry(self, subject: str) -> SubjectEntry | None:
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
            return caller.may_see_subject(subject) and not is_hidden(subject)

        if caller.named_subjects is not None:
            subject_names = [
                s for s in caller.named_subjects if is_subject_or_run_id(s) and may_see(s)
            ]
            subject_names = sorted(
                {s for s in subject_names if subject_listing_position(s) > start},
                key=subject_listing_position,
            )
            return (
                _cut_page(subject_names, limit)
                if len(subject_names) > limit
                else (subject_names, None)
            )
        return self._scan_for_visible_subjects(
            start, limit, limit + 1 if caller.may_see_all_subjects else _SCAN_BATCH, may_see
        )

    def _scan_for_visible_subjects(
        self, start: str, limit: int, batch_size: int, may_see: Callable[[str], bool]
    ) -> tuple[list[str], str | None]:
        subject_names, scan_position, num_scanned = list[str](), start, 0
        while True:
            scanned_subjects = self._catalog.list_subjects(scan_position, batch_size)
            subject_names += filter(may_see, scanned_subjects)
            num_scanned += len(scanned_subjects)
            if len(subject_names) > limit:
                return _cut_page(subject_names, limit)
            if len(scanned_subjects) < batch_size:
                return subject_names, None
            scan_position = subject_listing_position(scanned_subjects[-1])
            # The prefix that the batch ends in is looked through anew by the next page.
            unfinished_listing_prefix = int(scan_position.partition("/")[0], 16)
            next_page_cursor = f"{_END}{unfinished_listing_prefix - 1:02x}"
            if (
                num_scanned >= _MOST_SCANNED
                and unfinished_listing_prefix
                and (parse_page_cursor(next_page_cursor) or "") > start
            ):
                return [
                    s
                    for s in subject_names
                    if subject_listing_position(s) < f"{unfinished_listing_prefix:02x}/"
                ], next_page_cursor


def _cut_page(subjects: list[str], limit: int) -> tuple[list[str], str]:
    return subjects[:limit], subjects[limit - 1] if limit else ""
