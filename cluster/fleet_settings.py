"""How `dreambooth fleet run` works through a queue. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.shared_batch_plan import divide_slots_among_workers
from cluster.worker_pool import WorkerBounds
from dreambooth_ray.errors import ConfigError

_PARALLEL = re.compile(r"(?:(\d{1,6})-)?(\d{1,6})")


@dataclass(frozen=True)
class FleetSettings:
    """fewest, most: workers, which divide the slots; equal ones are there from the beginning on

    budget: of one owner's, trained at once; None is no limit
    idle_s: after which a worker beyond `fewest` that has no subject leaves
    stays: whether more is waited for once nothing waits
    """

    storage: str
    slots: int = 8
    fewest: int = 1
    most: int = 1
    retries: int = 2
    budget: int | None = None
    idle_s: float = 60.0
    stays: bool = False

    @property
    def bounds(self) -> WorkerBounds:
        """Of workers with slots."""
        slots_per_worker = divide_slots_among_workers(self.slots, self.most, self.slots)
        if self.fewest == self.most:
            return WorkerBounds.fixed(slots_per_worker)
        return WorkerBounds(slots_per_worker, self.fewest, self.idle_s)

    @property
    def command_words(self) -> Sequence[str]:
        """The command line after `dreambooth` that they are given by."""
        worker_range_text = (
            str(self.most) if self.fewest == self.most else f"{self.fewest}-{self.most}"
        )
        return (
            "fleet", "run", f"--storage={self.storage}", f"--slots={self.slots}",
            f"--parallel={worker_range_text}", f"--retries={self.retries}",
            f"--budget={self.budget or 0}", f"--idle-s={self.idle_s:g}",
            *(["--stay"] if self.stays else []),
        )  # fmt: skip


def parse_worker_range(text: str, slots: int) -> tuple[int, int]:
    """Fewest and most workers of `--parallel`: "4" or "1-8".

    raises: ConfigError for other words, for none at all, or for more than there are slots
    """
    range_match = _PARALLEL.fullmatch(text.strip())
    fewest_workers, most_workers = (
        (int(range_match[1] or range_match[2]), int(range_match[2])) if range_match else (1, 0)
    )
    if not 0 <= fewest_workers <= most_workers or most_workers < 1:
        raise ConfigError(
            f"--parallel={text!r} is no number of workers; give one, such as 4, or the fewest and "
            "the most, such as 1-8"
        )
    if 0 < slots < most_workers:
        raise ConfigError(
            f"--slots={slots} can't be divided by --parallel={text} workers; give more slots, or "
            "fewer workers"
        )
    return fewest_workers, most_workers
