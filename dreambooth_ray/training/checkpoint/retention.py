"""Which checkpoints of a run are kept."""

from collections.abc import Iterable, Mapping
from typing import Any

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint_selection import find_protected_steps, read_selection


def committed_steps(run: Store, after: int = 0) -> list[int]:
    """Steps of a run's committed checkpoints beyond step `after`, ascending."""
    newest_seen = f"{paths.checkpoint(after)}.json".removeprefix(f"{paths.CHECKPOINTS}/")
    return paths.checkpoint_steps(run.names(paths.CHECKPOINTS, newest_seen if after else ""))


def remove_old_checkpoints(run: Store, config: Config) -> None:
    """Remove what the configuration does not keep.

    Where evaluations choose, the best so far and those not evaluated yet stay.
    """
    CheckpointRotation(run, config).rotate()


class CheckpointRotation:
    """Removes what a run's configuration does not keep, commit after commit.

    A run has one writer, so its checkpoints and their metrics are listed once and remembered: a
    commit costs the same however many are kept.
    """

    def __init__(self, run: Store, config: Config) -> None:
        self._run, self._config = run, config
        self._steps: set[int] | None = None
        self._values: dict[int, float] = {}

    def rotate_after(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """As `rotate`, when the checkpoint of `step` has been committed.

        records: the run's metrics, which say the same as the manifests of its checkpoints
        """
        metric = self._config.checkpoint.best
        if metric:
            self._values.update({r["step"]: float(r[metric]) for r in records if metric in r})
        if self._steps is not None:
            self._steps.add(step)
        self.rotate()

    def rotate(self) -> None:
        """Remove what is not kept."""
        if self._steps is None:
            self._steps = set(committed_steps(self._run))
        settings, protected_steps = self._config.checkpoint, frozenset[int]()
        if self._config.choice.rule == "best":
            protected_steps = find_protected_steps(self._steps, read_selection(self._run))
        rotate_checkpoints(
            self._run, settings.keep, settings.best, protected_steps, self._steps, self._values
        )


def rotate_checkpoints(
    run: Store,
    num_kept: int,
    best_metric: str | None = None,
    protected_steps: frozenset[int] = frozenset(),
    steps: set[int] | None = None,
    values: dict[int, float] | None = None,
) -> None:
    """Remove all but the newest `num_kept` checkpoints and the best, once the newest is seen to
    be there: by what storage says of its files, which are not read.

    best_metric: metric of which the lowest is best; protected_steps: never removed here
    steps: those there are, if they are known, less those removed afterwards
    values: of the metric by step, as far as they are known; what is read is added
    """
    steps = set(committed_steps(run)) if steps is None else steps
    ascending_steps = sorted(steps)
    if len(steps) <= num_kept or manifest.find_loss(run, paths.checkpoint(ascending_steps[-1])):
        return
    kept_steps = {*ascending_steps[-num_kept:], *protected_steps}
    if best_metric:
        kept_steps |= {best_step(run, steps, best_metric, {} if values is None else values)}
    for step in ascending_steps:
        if step not in kept_steps:
            manifest.remove_artifact(run, paths.checkpoint(step))
            steps.remove(step)


def best_step(run: Store, steps: Iterable[int], metric: str, values: dict[int, float]) -> int:
    """The earliest of these checkpoints with the lowest `metric`; 0 if none has it.

    values: of the metric by step, as far as they are known; what is read is added
    """
    for step in set(steps) - values.keys():
        try:
            metrics = manifest.read_about(run, paths.checkpoint(step)).get("metrics")
        except CheckpointError:
            continue
        value = metrics.get(metric) if isinstance(metrics, dict) else None
        values[step] = float("inf") if value is None else float(value)
    scores = {step: values[step] for step in steps if values.get(step, float("inf")) < float("inf")}
    return min(scores, key=lambda s: (scores[s], s), default=0)
