"""Ray Train's trainer, less what a run has no use for.

Each helper of Ray Train is a process that starts: a second of processor time while the workers
start too.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from dreambooth_ray.compat.ray_train import ControllerThread
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.training.failure_policy import FailFastPolicy
from dreambooth_ray.training.restarts import RestartRecorder

_NEEDLESS_CALLBACKS = {
    # Hands out shards of Ray Datasets: runs read their photographs themselves.
    "DatasetsCallback",
    # Gives back the machines of a controller actor that died. Ours is no actor, and what a driver
    # has reserved is given back when it ends.
    "PlacementGroupCleanerCallback",
}


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Does not try again what can't go better, starts no helper in vain, and can be ended."""

    def __init__(
        self, *arguments: Any, cluster: ClusterConfig, restarts: RestartRecorder, **settings: Any
    ) -> None:
        """restarts: decides whether workers that failed are started again"""
        super().__init__(*arguments, **settings)
        self._is_local = cluster.ray_address is None
        self._restarts = restarts
        self._controller: ControllerThread | None = None
        self._is_ended = False

    def end(self) -> None:
        """Kill the workers and let `fit` return, or never begin; from any thread."""
        self._is_ended = True
        if self._controller is not None:
            self._controller.end()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            callback for callback in callbacks if type(callback).__name__ not in _NEEDLESS_CALLBACKS
        ]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = FailFastPolicy(settings["failure_policy"], self._restarts)
        if self._is_local and type(settings["scaling_policy"]) is FixedScalingPolicy:
            settings["scaling_policy"] = NoAutoscalerPolicy(self.scaling_config)
        self._controller = ControllerThread(settings, self._is_local)
        if self._is_ended:
            self._controller.end()
        return self._controller.run()


class NoAutoscalerPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Asks no autoscaler for machines, as there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """No request, and no actor that would take it."""

    def _maybe_send_resource_request(self) -> None:
        """None."""
