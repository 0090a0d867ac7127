"""How a run stands, in one look: what every stage asks before it does anything.

Each fact keeps its one writer: the worker commits checkpoints and metrics and writes down an early
end, the evaluation writes its selection, a person the request to stop, the export the bundle.
"""

import json
from dataclasses import dataclass
from typing import Literal

from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.early_stopping import find_stop_step, list_validation_losses
from dreambooth_ray.training.evaluation_decision import read_early_end_step, read_selection

# Why a run ends where it ends: by its configuration, a person's request, its validation losses
# that got no better, or evaluations of its checkpoints that stood still.
EndReason = Literal["configured", "stopped", "early", "stalled"]


@dataclass(frozen=True)
class RunState:
    """committed_step: of the newest checkpoint, 0 without one; last_step: where training ends.

    best_step: the checkpoint that evaluations selected, where the run is trained and chooses
    """

    committed_step: int
    last_step: int
    reason: EndReason
    best_step: int | None = None
    is_bundled: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether the checkpoint of the last step is there."""
        return self.committed_step > 0 and self.committed_step == self.last_step

    @property
    def bundled_checkpoint_step(self) -> int:
        """The checkpoint that a bundle is made of."""
        return self.last_step if self.best_step is None else self.best_step


def read_run_state(run: Store, config: Config) -> RunState:
    """Four requests at most; five where a bundle was half written.

    raises: StorageError
    """
    run_file_names = run.names()
    has_bundle = paths.BUNDLE in run_file_names and run.exists(f"{paths.BUNDLE}/{MANIFEST}")
    checkpoint_names = run.names(paths.CHECKPOINTS) if paths.CHECKPOINTS in run_file_names else []
    run_history = fence.parse_history(checkpoint_names)
    committed_step = max(run_history.checkpoints, default=0)
    bundled_step = committed_step if has_bundle else None
    last_step, end_reason = _find_run_end(run, config, run_file_names, run_history, bundled_step)
    if paths.STOP in run_file_names and committed_step != last_step:
        end_reason = "stopped"
    best_step = None
    selection_lease_numbers = fence.list_leases_of_file(run_file_names, paths.CHECKPOINT_SELECTION)
    if config.choice.rule == "best" and selection_lease_numbers and committed_step == last_step:
        best_step = read_selection(run, selection_lease_numbers[0]).best
    return RunState(committed_step, last_step, end_reason, best_step, has_bundle)


def _find_run_end(
    run: Store,
    config: Config,
    names: list[str],
    history: fence.RunHistory,
    bundled_step: int | None,
) -> tuple[int, EndReason]:
    """bundled_step: newest step of a run with a bundle, which needs no further look"""
    configured_steps = config.train.steps
    if bundled_step is not None:
        early_end_reason: EndReason = (
            "stalled" if fence.list_leases_of_file(names, paths.END) else "early"
        )
        return bundled_step, "configured" if bundled_step == configured_steps else early_end_reason
    if (end_step := read_early_end_step(run, names, history)) is not None:
        return end_step, "stalled"
    early_stop_step = _find_early_stop_step(run, config, names)
    return (
        (configured_steps, "configured") if early_stop_step is None else (early_stop_step, "early")
    )


def find_training_end_step(run: Store, config: Config) -> int:
    """Where a run would end with a configuration, that its evaluations ended it left aside."""
    early_stop_step = _find_early_stop_step(run, config, run.names())
    return (
        config.train.steps if early_stop_step is None else min(early_stop_step, config.train.steps)
    )


def _find_early_stop_step(run: Store, config: Config, names: list[str]) -> int | None:
    """The step at which a run's validation losses end it; None if they do not."""
    metrics_lease_numbers = fence.list_leases_of_file(names, paths.METRICS)
    if not (config.validation.patience and metrics_lease_numbers):
        return None
    metrics_log_text = run.read(
        fence.file_name_with_lease(paths.METRICS, metrics_lease_numbers[0])
    ).decode()
    metrics_log_lines = [
        metrics_log_line
        for metrics_log_line in metrics_log_text.splitlines(keepends=True)
        if metrics_log_line.endswith("\n")
    ]
    validation_loss_history = list_validation_losses(
        [json.loads(metrics_log_line) for metrics_log_line in metrics_log_lines]
    )
    return find_stop_step(validation_loss_history, config.validation)
