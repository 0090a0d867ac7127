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


def select_page(
    run_ids: Iterable[str], pattern: str, after: str, limit: int
) -> tuple[list[str], bool]:
    """Up to `limit` of the runs that match, after one of them; and whether there are more.

    pattern: part of a run id, or with * and ? the whole of one; "" matches all
    raises: ConfigError if `after` is none of the runs
    """
    listed_ids = list(run_ids)
    if after and after not in listed_ids:
        raise ConfigError(f"--after={after!r} is none of these runs; give the last one shown")
    following_ids = listed_ids[listed_ids.index(after) + 1 :] if after else listed_ids
    has_wildcards = any(character in pattern for character in "*?[")
    glob_pattern = pattern if has_wildcards else f"*{pattern}*"
    matching_ids = [run_id for run_id in following_ids if fnmatch.fnmatchcase(run_id, glob_pattern)]
    return matching_ids[:limit], len(matching_ids) > limit


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
        run = Store(uri)
        folder_names = set(run.names())
        checkpoints = run.names(paths.CHECKPOINTS) if paths.CHECKPOINTS in folder_names else []
        step = max(parse_history(checkpoints).checkpoints, default=0)
        if paths.BUNDLE in folder_names and is_finished(run):
            return RunSummary(step, "finished")
        return RunSummary(step, "stopped" if paths.STOP in folder_names else state)
    except (DreamBoothError, OSError):
        return RunSummary(0, f"{state} (storage does not answer)")
