"""Which checkpoint is best: fidelity against drift. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredCheckpoint:
    """One checkpoint's evaluation. fidelity: higher is better; drift: lower is better."""

    step: int
    fidelity: float
    drift: float


def find_fidelity_drift_front(scored: Sequence[ScoredCheckpoint]) -> list[ScoredCheckpoint]:
    """Checkpoints that no other beats in both, by step; of equals the earliest."""
    return sorted((s for s in scored if not any(_dominates(o, s) for o in scored)), key=_get_step)


def _dominates(one: ScoredCheckpoint, other: ScoredCheckpoint) -> bool:
    if (one.fidelity, one.drift) == (other.fidelity, other.drift):
        return one.step < other.step
    return one.fidelity >= other.fidelity and one.drift <= other.drift


def _get_step(scored: ScoredCheckpoint) -> int:
    return scored.step


def select_best_within_drift(
    scored: Sequence[ScoredCheckpoint], max_drift: float
) -> ScoredCheckpoint | None:
    """The highest fidelity with drift up to `max_drift`; where there is none, the least drift.

    Of equals the earliest.
    """
    if not scored:
        return None
    checkpoints_within_drift = [s for s in scored if s.drift <= max_drift]
    if checkpoints_within_drift:
        return max(checkpoints_within_drift, key=lambda s: (s.fidelity, -s.drift, -s.step))
    return min(scored, key=lambda s: (s.drift, -s.fidelity, s.step))


def find_early_stop_step(
    scored: Sequence[ScoredCheckpoint], patience: int, min_gain: float
) -> int | None:
    """The step whose evaluation is the `patience`-th in a row without a gain, or None.

    A gain is a checkpoint that beats every earlier one by more than `min_gain`, in
    fidelity or in drift. patience 0 never stalls.
    """
    evaluations_without_gain, previous_checkpoints = 0, list[ScoredCheckpoint]()
    for scored_checkpoint in sorted(scored, key=_get_step):
        is_gain = all(
            scored_checkpoint.fidelity > e.fidelity + min_gain
            or scored_checkpoint.drift < e.drift - min_gain
            for e in previous_checkpoints
        )
        evaluations_without_gain = 0 if is_gain else evaluations_without_gain + 1
        previous_checkpoints.append(scored_checkpoint)
        if patience and evaluations_without_gain >= patience:
            return scored_checkpoint.step
    return None
