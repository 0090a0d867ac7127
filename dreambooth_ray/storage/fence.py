"""What the holders of a run wrote, told apart by the numbers of their leases.

A holder may be frozen at any instruction, be followed, and wake up (`lease.py`). So whatever a
holder writes has the number of its lease in its name. Whoever takes a run over first writes down
from which step it goes on, and from then on what lower numbers have beyond that step is void, when
ever it was or will be written: readers never see a mixture of two holders.

Of files that are replaced over and over (metrics, the choice among checkpoints) each holder has its
own, and the one of the highest number counts.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.lease_keeper import LeaseKeeper, LeaseWaiter, get_run_lease_files
from dreambooth_ray.storage.store import Store


@dataclass(frozen=True, order=True)
class CheckpointId:
    """A checkpoint: after `step` optimizer steps, by the holder of lease number `lease`.

    lease: 0 for those of versions that had no numbers
    """

    step: int
    lease: int = 0

    @property
    def name(self) -> str:
        """Artifact name, in the run's folder."""
        return paths.checkpoint(self.step, self.lease)

    @property
    def evaluation(self) -> str:
        """File of its evaluation, in the run's folder."""
        return paths.evaluation(self.step, self.lease)


@dataclass(frozen=True)
class RunHistory:
    """What the names in a run's checkpoints folder say. Pure.

    pointers: of all checkpoints, void ones too; takeovers: (lease, step it went on from)
    """

    pointers: tuple[CheckpointId, ...] = ()
    takeovers: tuple[tuple[int, int], ...] = ()

    def is_valid(self, step: int, lease: int) -> bool:
        """Whether what the holder of `lease` wrote about `step` counts."""
        return all(
            step <= resumed for takeover_lease, resumed in self.takeovers if takeover_lease > lease
        )

    @property
    def checkpoints(self) -> dict[int, CheckpointId]:
        """The checkpoint that counts, by step, ascending; of one step the highest lease's."""
        return {
            checkpoint_id.step: checkpoint_id for checkpoint_id in self.select_valid(self.pointers)
        }

    def select_valid(self, entries: tuple[CheckpointId, ...]) -> list[CheckpointId]:
        """Those that count, ascending, one a step."""
        newest_by_step = {e.step: e for e in sorted(entries) if self.is_valid(e.step, e.lease)}
        return list(newest_by_step.values())

    @property
    def voided_checkpoints(self) -> list[CheckpointId]:
        """Pointers that count no more."""
        valid_checkpoints = set(self.checkpoints.values())
        return [
            checkpoint_id
            for checkpoint_id in self.pointers
            if checkpoint_id not in valid_checkpoints
        ]

    @property
    def newest_lease(self) -> int:
        """The highest number in any name."""
        lease_numbers = [checkpoint_id.lease for checkpoint_id in self.pointers] + [
            n for n, _ in self.takeovers
        ]
        return max(lease_numbers, default=0)


def parse_history(names: list[str]) -> RunHistory:
    """names: in the run's checkpoints folder"""
    return RunHistory(parse_checkpoints(names), paths.parse_takeover_names(names))


def parse_checkpoints(names: list[str]) -> tuple[CheckpointId, ...]:
    """names: in a folder of checkpoints, or of evaluations of checkpoints"""
    return tuple(CheckpointId(step, lease) for step, lease in paths.parse_checkpoint_names(names))


def read_history(run: Store, after: int = 0) -> RunHistory:
    """One request. after: leave out checkpoints up to this step"""
    # Takeovers are listed behind all steps, so none of them is left out.
    listing_start = f"{paths.checkpoint(after)}.json".removeprefix(f"{paths.CHECKPOINTS}/")
    return parse_history(run.names(paths.CHECKPOINTS, listing_start if after else ""))


def find_checkpoint(run: Store, step: int) -> CheckpointId:
    """The checkpoint of a step; raises CheckpointError if there is none."""
    checkpoint = read_history(run).checkpoints.get(step)
    if checkpoint is None:
        raise CheckpointError(f"{run.uri} has no checkpoint of step {step}")
    return checkpoint


def record_resumed_step(run: Store, lease: int) -> int:
    """Write down that the holder of `lease` goes on from the newest checkpoint; returns its step.

    Before anything else is written by that holder. The first of a run has nobody to fence off.
    """
    newest_step = max(read_history(run).checkpoints, default=0)
    if lease > 1:
        takeover_record = {"lease": lease, "step": newest_step, "at": time.time()}
        run.write(paths.takeover_file(lease, newest_step), json.dumps(takeover_record).encode())
    return newest_step


def keep_lease(
    run: Store, lease_s: float, patience_s: float, say: Callable[[str], None]
) -> LeaseKeeper:
    """The next lease of a run, to be entered: its number is above all in the run's names.

    patience_s: how long a holder that shows signs of life is waited for all the same
    """
    lease_waiter = LeaseWaiter(get_run_lease_files(run), lease_s, patience_s, say)
    return LeaseKeeper(lease_waiter, say, at_least=read_history(run).newest_lease + 1)


def has_newer_holder(run: Store, lease: int) -> bool:
    """Whether a newer holder than that of `lease` is known; one request.

    Who asks this after a commit, and lists checkpoints later still, may remove old ones: a newer
    holder that comes in between finds that commit when it looks for where to go on from.
    """
    return (get_run_lease_files(run).newest_lease_number() or 0) > lease


def file_name_with_lease(name: str, lease: int) -> str:
    """The holder's own file of that name: "end.json" of lease 3 is "end-000003.json".

    The first holder's, and those of versions that had no numbers, are plain.
    """
    stem, separator, suffix = name.rpartition(".")
    return f"{stem}-{lease:06d}{separator}{suffix}" if lease > 1 else name


def list_leases_of_file(names: list[str], name: str, up_to_lease: int | None = None) -> list[int]:
    """Lease numbers of the holders' files called `name` among `names`, newest first.

    up_to_lease: leave out those of later holders
    """
    stem, _, suffix = name.rpartition(".")
    holder_file_pattern = re.compile(rf"{re.escape(stem)}(?:-(\d{{6}}))?\.{re.escape(suffix)}")
    name_matches = (holder_file_pattern.fullmatch(file_name) for file_name in names)
    lease_numbers = [int(match.group(1) or 1) for match in name_matches if match]
    return sorted(
        (n for n in lease_numbers if up_to_lease is None or n <= up_to_lease), reverse=True
    )


def read_file_of_highest_lease(
    run: Store, name: str, up_to_lease: int | None = None
) -> bytes | None:
    """Content of the newest holder's file of that name; None if no holder has one."""
    while lease_numbers := list_leases_of_file(run.names(), name, up_to_lease):
        try:
            return run.read(file_name_with_lease(name, lease_numbers[0]))
        except FileNotFoundError:
            continue  # a newer holder has just put its own in its place
    return None
