"""Makes the catalog agree with the runs there are: for those of earlier releases, after accidents.

It may run beside commits, deletions and other rebuilds. It adds what it has read the manifest of,
and removes only what it has looked for and not found: a commit writes its manifest before its
version, so a version without its manifest was deleted.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.subject_version import is_subject_or_run_id
from dreambooth_ray.storage.version_catalog import SubjectVersionCatalog, subject_listing_position

_THREADS = 16
_BATCH = 1000
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RebuildReport:
    """num_added, num_removed: versions; failures: what could not be made, a line a subject."""

    num_runs: int
    num_subjects: int
    num_added: int
    num_removed: int
    failures: tuple[str, ...] = ()


def is_catalog_complete(catalog: SubjectVersionCatalog) -> bool:
    """Whether a rebuild has ended well here, so that no run of an earlier release is missing."""
    try:
        return bool(catalog.store.read(paths.CATALOG_COMPLETE, patience_s=0.0))
    except FileNotFoundError:
        return False


def rebuild_catalog(
    catalog: SubjectVersionCatalog, on_progress: OnProgress = lambda _unit, _num_done, _total: None
) -> RebuildReport:
    """Entries for all that is committed, and for nothing else.

    Four requests a run and its subject, beside one for each 1,000 names.

    on_progress: gets what is counted, how many of them are done, and how many there are
    raises: StorageError
    """
    run_ids = [name for name in catalog.store.names("runs") if is_subject_or_run_id(name)]
    stored_version_keys = set(_list_all_version_keys(catalog))
    with ThreadPoolExecutor(_THREADS) as pool:
        run_versions = _map_in_batches(
            pool, lambda run_id: _add_run_version(catalog, run_id), run_ids, "runs", on_progress
        )
        committed_version_keys = {key for key, _ in filter(None, run_versions)}
        was_removed = _map_in_batches(
            pool,
            lambda key: _remove_stale_version(catalog, key),
            sorted(stored_version_keys - committed_version_keys),
            "stale versions",
            on_progress,
        )
        subjects = {key.partition("@")[0] for key in stored_version_keys | committed_version_keys}
        subjects.update(_list_all_subjects(catalog))
        failures = _map_in_batches(
            pool,
            lambda name: _update_subject_entry(catalog, name),
            sorted(subjects),
            "subjects",
            on_progress,
        )
    report = RebuildReport(
        num_runs=len(run_ids),
        num_subjects=len({key.partition("@")[0] for key in committed_version_keys}),
        num_added=sum(is_new for _, is_new in filter(None, run_versions)),
        num_removed=sum(was_removed),
        failures=tuple(filter(None, failures)),
    )
    if not report.failures:
        catalog.store.write(paths.CATALOG_COMPLETE, b'{"format": 1}')
    return report


def _add_run_version(catalog: SubjectVersionCatalog, run_id: str) -> tuple[str, bool] | None:
    """Key of the version a run has committed, and whether it was new; None without one."""
    committed_version = catalog.read_run_version(run_id)
    if committed_version is None:
        return None
    version_key = f"{committed_version.subject}@{committed_version.version}"
    if catalog.read_version(committed_version.subject, committed_version.version) is not None:
        return version_key, False
    catalog.write_version(committed_version)
    # Deleted in between, its deletion may have come before the writing.
    if catalog.read_run_version(run_id) != committed_version:
        catalog.remove(committed_version.subject, committed_version.version)
        return None
    return version_key, True


def _remove_stale_version(catalog: SubjectVersionCatalog, key: str) -> bool:
    """Remove a version that no run has committed any more; whether it was one."""
    subject, _, version = key.partition("@")
    version_record = catalog.read_version(subject, version)
    if (
        version_record is not None
        and catalog.read_run_version(version_record.run_id) == version_record
    ):
        return False
    catalog.remove(subject, version)
    return True


def _update_subject_entry(catalog: SubjectVersionCatalog, subject: str) -> str:
    """Why the entry of a subject could not be written; "" if it was."""
    try:
        catalog.update_entry(subject)
    except DreamBoothError as error:
        return str(error)
    return ""


def _list_all_version_keys(catalog: SubjectVersionCatalog) -> Iterator[str]:
    """Every version that a file is there for, as subject@version."""
    last_file_name = ""
    while version_file_names := catalog.store.files_after(paths.CATALOG_VERSIONS, last_file_name):
        version_keys = (
            file_name.rpartition("/")[2].removesuffix(".json") for file_name in version_file_names
        )
        yield from (key for key in version_keys if is_subject_or_run_id(key.partition("@")[0]))
        last_file_name = version_file_names[-1]


def _list_all_subjects(catalog: SubjectVersionCatalog) -> Iterator[str]:
    last_position = ""
    while subjects := catalog.list_subjects(last_position):
        yield from subjects
        last_position = subject_listing_position(subjects[-1])


def _map_in_batches(
    pool: ThreadPoolExecutor,
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    unit: str,
    on_progress: OnProgress,
) -> list[_Result]:
    """`work` of every item, in order, by the pool; a batch at a time, so that few wait in it."""
    results: list[_Result] = []
    for batch_start in range(0, len(items), _BATCH):
        results += pool.map(work, items[batch_start : batch_start + _BATCH])
        on_progress(unit, len(results), len(items))
    return results
