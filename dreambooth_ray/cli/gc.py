"""`dreambooth gc`: what a storage holds that nothing needs."""

import re
import time
from typing import Annotated

import typer

from dreambooth_ray.cli.storage_argument import StorageArguments, read_storage
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
    jobs that ended a week ago, images whose URL has expired, and what processes that died left on
    this host. What a run, a fleet or a lease uses stays.
    """
    from dreambooth_ray.storage.store import use_options

    config = read_storage(storage)
    use_options(config.uri, config.options)
    collect_garbage(config.uri, delete, older_than)
    collect_scratch(scratch or config.scratch or "", delete, older_than)


def collect_garbage(storage: str, delete: bool, older_than: str, prefix: str = "") -> None:
    """Print a line for each piece of garbage whose name begins with `prefix`, and a sum."""
    from dreambooth_ray.storage.garbage import find_garbage, remove_garbage
    from dreambooth_ray.storage.store import Store
    from serve.job_garbage import find_job_garbage
    from serve.signed_files import find_expired_files

    store, now_s = Store(storage), time.time()
    before_s = now_s - parse_age(older_than)
    found = [
        *find_garbage(store, before_s, now_s),
        *find_job_garbage(store, before_s, now_s),
        *find_expired_files(store, before_s, now_s),
    ]
    items = [item for item in found if item.name.startswith(prefix)]
    num_bytes = num_removed = 0
    for item in items:
        if delete and not remove_garbage(store, item, now_s):
            print(f"kept: a run has begun to use it\t{item.name}")
            continue
        num_removed, num_bytes = num_removed + 1, num_bytes + item.size_bytes
        age_h = (now_s - item.modified_s) / 3600
        print(
            f"{'removed' if delete else 'unused'}\t{item.size_bytes / 1e6:.1f} MB\t{age_h:.0f} h\t"
            f"{item.reason}\t{item.name}"
        )
    verb = "removed" if delete else "could go; remove with --delete"
    print(f"{num_removed} things, {num_bytes / 1e6:.1f} MB {verb}")


def collect_scratch(scratch: str, delete: bool, older_than: str) -> None:
    """Print a line for each folder that a process of this host has left behind when it died."""
    from dreambooth_ray.storage.scratch import find_stale_scratch, scratch_base, sweep_scratch

    find = sweep_scratch if delete else find_stale_scratch
    for folder in find(scratch_base(scratch or None), parse_age(older_than)):
        print(f"{'removed' if delete else 'unused'}\tof a process that died\t{folder}")


def parse_age(text: str) -> float:
    """Seconds of a duration such as 24h; raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise ConfigError(
            f"--older-than={text!r} is no duration; give a number and s, m, h or d, such as 24h"
        )
    return float(match.group(1)) * _UNITS_S[match.group(2)]
