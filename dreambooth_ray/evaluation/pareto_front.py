"""Which checkpoint is good: fidelity against drift. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scored:
    """One checkpoint's evaluation. fidelity: higher is better; drift: lower is better."""

    step: int
    fidelity: float
    drift: float


def front(scored: Sequence[Scored]) -> list[Scored]:
    """Those that no other beats in both, by step; of equals the earliest."""
    return sorted((s for s in scored if not any(_beats(o, s) for o in scored)), key=_by_step)


def _beats(one: Scored, other: Scored) -> bool:
    if (one.fidelity, one.drift) == (other.fidelity, other.drift):
        return one.step < other.step
    return one.fidelity >= other.fidelity and one.drift <= other.drift


def _by_step(scored: Scored) -> int:
    return scored.step


def best(scored: Sequence[Scored], max_drift: float) -> Scored | None:
    """The most faithful with drift up to `max_drift`; where there is none, the least drifted.

    Of equals the earliest.
    """
    if not scored:
        return None
    within = [s for s in scored if s.drift <= max_drift]
    if within:
        return max(within, key=lambda s: (s.fidelity, -s.drift, -s.step))
    return min(scored, key=lambda s: (s.drift, -s.fidelity, s.step))


def stalls_at(scored: Sequence[Scored], patience: int, min_gain: float) -> int | None:
    """The step whose evaluation is the `patience`-th in a row without a gain, or None.

    A gain is a point that every earlier one falls behind by more than `min_gain`, in
    fidelity or in drift. patience 0 never stalls.
    """
    since, earlier = 0, list[Scored]()
    for one in sorted(scored, key=_by_step):
        behind = all(
            one.fidelity > e.fidelity + min_gain or one.drift < e.drift - min_gain for e in earlier
        )
        since = 0 if behind else since + 1
        earlier.append(one)
        if patience and since >= patience:
            return one.step
    return None
