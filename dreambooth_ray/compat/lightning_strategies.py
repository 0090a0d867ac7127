"""Of Lightning: strategies whose workers get their device from Ray Train, a CPU among them.

Ray Train ships such a strategy for DDP alone (RayDDPStrategy), and DeepSpeed's insists on CUDA.

Private: ModelParallelStrategy._determine_device_ids, DeepSpeedStrategy._init_deepspeed_distributed,
and what DeepSpeedStrategy does in setup_environment and setup_distributed beside its checks.
"""

from typing import Any

import ray.train.torch
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, ModelParallelStrategy

from dreambooth_ray.compat.deepspeed import forgo_compiled_communication


class RayFullyShardedStrategy(ModelParallelStrategy):
    """FSDP2, every worker with the device that Ray gave it."""

    @property
    def root_device(self) -> torch.device:
        """The device that Ray gave this worker."""
        device: torch.device = ray.train.torch.get_device()
        return device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every worker reads its own part."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def _determine_device_ids(self) -> list[int]:
        return [self.root_device.index or 0]


class RayZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed, every worker with the device that Ray gave it, also where that is a CPU."""

    @property
    def root_device(self) -> torch.device:
        """The device that Ray gave this worker."""
        device: torch.device = ray.train.torch.get_device()
        # DeepSpeed wants to know which CPU.
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """As Lightning's, less its insistence on CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """As Lightning's, less its check of device indices, which Ray has already seen to."""
        forgo_compiled_communication()
        self.set_world_ranks()
        self._init_deepspeed_distributed()
