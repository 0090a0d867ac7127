"""`dreambooth gc`: what a storage holds that nothing needs."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from dreambooth_ray.cli.storage_argument import StorageArguments, open_storage, read_storage
from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import ConfigError

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

Delete = Annotated[bool, typer.Option("--delete", help="remove it; without, it is only shown")]
OlderThan = Annotated[
    str, typer.Option(help="leave what is younger: a number and s, m, h or d, such as 36h")
]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def gc(
    storage: StorageArguments = None,
    delete: Delete = False,
    older_than: OlderThan = "24h",
    scratch: Annotated[str, typer.Option(help="this host's storage.scratch, if it is set")] = "",
) -> None:
    """Show what nothing needs, or remove it: half uploads, unused class images and photographs,
    jobs and queued subjects that ended a week ago, images whose URL has expired, and what
    processes that died left on this host. What a run, a fleet or a lease uses stays.
    """
    scratch_folder = scratch or read_storage(storage).scratch or ""
    # First: it is this host's, whatever the storage holds.
    num_scratch_folders, scratch_bytes = collect_scratch(scratch_folder, delete, older_than)
    num_garbage_items, garbage_bytes = collect_garbage(
        open_storage(storage).uri, delete, older_than
    )
    print_sum(num_scratch_folders + num_garbage_items, scratch_bytes + garbage_bytes, delete)


def collect_garbage(
    storage: str, delete: bool, older_than: str, prefix: str = ""
) -> tuple[int, int]:
    """Print a line for each piece of garbage whose name begins with `prefix`.

    returns: how many they are, and their bytes
    """
    from dreambooth_ray.queue.queue_garbage import (
        EndedGarbage,
        find_ended_garbage,
        remove_ended_garbage,
    )
    from dreambooth_ray.storage.garbage import Garbage, find_garbage, remove_garbage
    from dreambooth_ray.storage.store import Store
    from serve.image_job_garbage import find_image_job_garbage
    from serve.signed_image_files import find_expired_image_files

    store, now_s = Store(storage), time.time()
    cutoff_s = now_s - parse_age(older_than)
    all_garbage = [
        *find_garbage(store, cutoff_s, now_s, lambda message: print(f"note\t{message}")),
        *find_ended_garbage(store, cutoff_s, now_s),
        *find_image_job_garbage(store, cutoff_s, now_s),
        *find_expired_image_files(store, cutoff_s, now_s),
    ]

    def remove_unless_in_use(garbage_item: Garbage) -> bool:
        if isinstance(garbage_item, EndedGarbage):
            return remove_ended_garbage(store, garbage_item)
        return remove_garbage(store, garbage_item, now_s)

    matching_garbage = [
        garbage_item for garbage_item in all_garbage if garbage_item.name.startswith(prefix)
    ]
    num_bytes = num_removed = 0
    for garbage_item in matching_garbage:
        if delete and not remove_unless_in_use(garbage_item):
            print(f"kept: somebody has begun to use it\t{garbage_item.name}")
            continue
        num_removed, num_bytes = num_removed + 1, num_bytes + garbage_item.size_bytes
        age_h = (now_s - garbage_item.modified_s) / 3600
        print(
            f"{'removed' if delete else 'unused'}\t{garbage_item.size_bytes / 1e6:.1f} MB\t"
            f"{age_h:.0f} h\t{garbage_item.reason}\t{garbage_item.name}"
        )
    return num_removed, num_bytes


def collect_scratch(scratch: str, delete: bool, older_than: str) -> tuple[int, int]:
    """Print a line for each folder that a process of this host has left behind when it died.

    returns: how many they are, and their bytes
    """
    from dreambooth_ray.storage.scratch import find_stale_scratch, scratch_base, sweep_scratch

    scratch_root, min_age_s = scratch_base(scratch or None), parse_age(older_than)
    stale_folders = find_stale_scratch(scratch_root, min_age_s)
    folder_sizes_bytes = {
        stale_folder: _measure_folder(stale_folder) for stale_folder in stale_folders
    }
    if delete:
        stale_folders = sweep_scratch(scratch_root, min_age_s)
    for stale_folder in stale_folders:
        print(
            f"{'removed' if delete else 'unused'}\t"
            f"{folder_sizes_bytes.get(stale_folder, 0) / 1e6:.1f} MB\t"
            f"of a process that died\t{stale_folder}"
        )
    return len(stale_folders), sum(
        folder_sizes_bytes.get(stale_folder, 0) for stale_folder in stale_folders
    )


def _measure_folder(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def print_sum(num_things: int, num_bytes: int, delete: bool) -> None:
    """The last line: what was removed, or could be."""
    removal_text = "removed" if delete else "could go; remove with --delete"
    print(f"{describe_count(num_things, 'thing')}, {num_bytes / 1e6:.1f} MB {removal_text}")


def parse_age(text: str) -> float:
    """Seconds of a duration such as 24h; raises ConfigError."""
    duration_match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if duration_match is None:
        raise ConfigError(
            f"--older-than={text!r} is no duration; give a number and s, m, h or d, such as 24h"
        )
    return float(duration_match.group(1)) * _UNITS_S[duration_match.group(2)]
