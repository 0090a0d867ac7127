"""Owners take turns at whole pieces of work, whoever has more of it waiting. No IO, no clock."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar


class OwnedWork(Protocol):
    """What waits."""

    @property
    def owner(self) -> str:
        """Whose turn it takes."""

    @property
    def priority(self) -> int:
        """Among its owner's: higher first."""


_Work = TypeVar("_Work", bound=OwnedWork)


class OwnerTurns:
    """The owner who has been given least so far comes first; within an owner the highest priority,
    then the order of arrival. One who adds a hundred pieces delays nobody else's first.
    """

    def __init__(self) -> None:
        self._num_given: Counter[str] = Counter()

    def take(self, waiting: Sequence[_Work]) -> _Work | None:
        """What is next of what waits, in its order of arrival; None if nothing waits."""
        if not waiting:
            return None
        fewest_turns = min(self._num_given[work.owner] for work in waiting)
        owner = next(w.owner for w in waiting if self._num_given[w.owner] == fewest_turns)
        self._num_given[owner] += 1
        return max((w for w in waiting if w.owner == owner), key=lambda w: w.priority)
