"""Which runs there are and how they stand: a page at a time, a few requests for each run shown."""

import fnmatch
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.fence import parse_history
from dreambooth_ray.storage.store import Store

_READERS = 16


@dataclass(frozen=True)
class RunSummary:
    """step: of the newest checkpoint, 0 without one"""

    step: int
    state: str


def select_run_page(
    run_ids: Iterable[str], pattern: str, after: str, limit: int
) -> tuple[list[str], bool]:
    """Up to `limit` of the runs that match, after one of them; and whether there are more.

    pattern: part of a run id, or with * and ? the whole of one; "" matches all
    raises: ConfigError if `after` is none of the runs
    """
    all_run_ids = list(run_ids)
    if after and after not in all_run_ids:
        raise ConfigError(f"--after={after!r} is none of these runs; give the last one shown")
    following_run_ids = all_run_ids[all_run_ids.index(after) + 1 :] if after else all_run_ids
    has_wildcards = any(character in pattern for character in "*?[")
    run_id_pattern = pattern if has_wildcards else f"*{pattern}*"
    matching_run_ids = [
        run_id for run_id in following_run_ids if fnmatch.fnmatchcase(run_id, run_id_pattern)
    ]
    return matching_run_ids[:limit], len(matching_run_ids) > limit


def summarize_runs(
    run_uris: list[str], states: Callable[[str], str] = lambda _: "unfinished"
) -> list[RunSummary]:
    """How runs stand, three requests each at most.

    states(run URI): the word for a run that is neither finished nor stopped
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda uri: _summarize_run(uri, states(uri)), run_uris))


def _summarize_run(uri: str, state: str) -> RunSummary:
    try:
        run_store = Store(uri)
        folder_names = set(run_store.names())
        checkpoint_file_names = (
            run_store.names(paths.CHECKPOINTS) if paths.CHECKPOINTS in folder_names else []
        )
        newest_step = max(parse_history(checkpoint_file_names).checkpoints, default=0)
        if paths.BUNDLE in folder_names and is_finished(run_store):
            return RunSummary(newest_step, "finished")
        return RunSummary(newest_step, "stopped" if paths.STOP in folder_names else state)
    except (DreamBoothError, OSError):
        return RunSummary(0, f"{state} (storage does not answer)")
