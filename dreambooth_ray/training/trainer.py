"""Ray Train's trainer, less what a run has no use for.

Each helper of Ray Train is a process that starts: a second of processor time while the workers
start too.
"""

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.training.failures import LastWords

# How often Ray Train's controller looks at its workers, in seconds; its own is 2.
_POLLING = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1"
# Hands out shards of Ray Datasets: runs read their photographs themselves.
_DATASETS = "DatasetsCallback"
# Gives back the machines of a controller that died. A Ray of this process's own ends with it; and
# as it has no dashboard, where the helper asks for the controller, each run would end with the
# 12 seconds for which Ray Train waits for the answer.
_CLEANER = "PlacementGroupCleanerCallback"


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Does not try again what can't go better, and starts no helper in vain."""

    def __init__(self, *given: Any, cluster: ClusterConfig, **settings: Any) -> None:
        os.environ.setdefault(*_POLLING)
        super().__init__(*given, **settings)
        # On a Ray of this process's own.
        self._alone = cluster.ray_address is None

    def _create_default_callbacks(self) -> list[Any]:
        needless = {_DATASETS, _CLEANER} if self._alone else {_DATASETS}
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ not in needless]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = LastWords(settings["failure_policy"])
        if self._alone and type(settings["scaling_policy"]) is FixedScalingPolicy:
            settings["scaling_policy"] = _Settled(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)


class _Settled(FixedScalingPolicy):  # type: ignore[misc]
    """Asks no autoscaler for machines, as there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """No request, and no actor that would take it."""

    def _maybe_send_resource_request(self) -> None:
        """None."""
