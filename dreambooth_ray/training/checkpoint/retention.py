"""Which checkpoints of a run are kept."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import fence, manifest
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.evaluation_decision import (
    find_protected_steps,
    is_evaluation_due,
    read_selection,
)


def committed_steps(run: Store, after: int = 0) -> list[int]:
    """Steps of a run's committed checkpoints beyond step `after`, ascending."""
    return list(fence.read_history(run, after).checkpoints)


def remove_old_checkpoints(run: Store, config: Config, lease: int = 0) -> None:
    """Remove what the configuration does not keep, and what counts no more.

    Where evaluations choose, the best so far and those not evaluated yet stay.

    lease: number of the caller's; one that was followed removes nothing
    """
    CheckpointRotation(run, config, lease).rotate()


class CheckpointRotation:
    """Removes what a run's configuration does not keep, commit after commit.

    The holder of a lease is a run's one writer, so its checkpoints and their metrics are listed
    once and remembered: a commit costs the same however many are kept.
    """

    def __init__(self, run: Store, config: Config, lease: int = 0) -> None:
        """lease: number of the caller's; one that was followed removes nothing"""
        self._run, self._config, self._lease = run, config, lease
        self._checkpoints: dict[int, CheckpointId] | None = None
        self._values: dict[int, float] = {}

    def rotate_after_commit(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """As `rotate`, when the checkpoint of `step` has been committed.

        records: the run's metrics, which say the same as the manifests of its checkpoints
        """
        metric_name = self._config.checkpoint.best
        if metric_name:
            self._values.update(
                {r["step"]: float(r[metric_name]) for r in records if metric_name in r}
            )
        if self._checkpoints is not None:
            self._checkpoints[step] = CheckpointId(step, self._lease)
        self.rotate()

    def rotate(self) -> None:
        """Remove what is not kept, and at first what counts no more."""
        if fence.has_newer_holder(self._run, self._lease):
            return
        if self._checkpoints is None:
            checkpoint_history = fence.read_history(self._run)
            self._checkpoints = checkpoint_history.checkpoints
            for invalid_checkpoint in checkpoint_history.voided_checkpoints:
                manifest.remove_artifact(self._run, invalid_checkpoint.name)
        checkpoint_config, protected_steps = self._config.checkpoint, frozenset[int]()
        if self._config.choice.rule == "best":
            selection = read_selection(self._run, self._lease)
            is_evaluation_due_at = partial(is_evaluation_due, self._config)
            protected_steps = find_protected_steps(
                self._checkpoints, selection, is_evaluation_due_at
            )
        rotate_checkpoints(
            self._run,
            checkpoint_config.keep,
            checkpoint_config.best,
            protected_steps,
            self._checkpoints,
            self._values,
        )


def rotate_checkpoints(
    run: Store,
    num_kept: int,
    best_metric: str | None = None,
    protected_steps: frozenset[int] = frozenset(),
    checkpoints: dict[int, CheckpointId] | None = None,
    values: dict[int, float] | None = None,
) -> None:
    """Remove all but the newest `num_kept` checkpoints and the best, once the newest is seen to
    be there: by what storage says of its files, which are not read.

    best_metric: metric of which the lowest is best; protected_steps: never removed here
    checkpoints: those there are by step, if they are known, less those removed afterwards
    values: of the metric by step, as far as they are known; what is read is added
    """
    if checkpoints is None:
        checkpoints = fence.read_history(run).checkpoints
    steps = sorted(checkpoints)
    if len(steps) <= num_kept or manifest.find_size_or_checksum_mismatch(
        run, checkpoints[steps[-1]].name
    ):
        return
    kept_steps = {*steps[-num_kept:], *protected_steps}
    if best_metric:
        metric_by_step = {} if values is None else values
        kept_steps |= {best_step(run, checkpoints.values(), best_metric, metric_by_step)}
    for step in steps:
        if step not in kept_steps:
            manifest.remove_artifact(run, checkpoints.pop(step).name)


def best_step(
    run: Store, checkpoints: Iterable[CheckpointId], metric: str, values: dict[int, float]
) -> int:
    """The earliest of these checkpoints with the lowest `metric`; 0 if none has it.

    values: of the metric by step, as far as they are known; what is read is added
    """
    checkpoint_by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    for step in checkpoint_by_step.keys() - values.keys():
        try:
            metrics = manifest.read_artifact_metadata(run, checkpoint_by_step[step].name).get(
                "metrics"
            )
        except CheckpointError:
            continue
        metric_value = metrics.get(metric) if isinstance(metrics, dict) else None
        values[step] = float("inf") if metric_value is None else float(metric_value)
    metric_by_step = {
        s: values[s] for s in checkpoint_by_step if values.get(s, float("inf")) < float("inf")
    }
    return min(metric_by_step, key=lambda s: (metric_by_step[s], s), default=0)
