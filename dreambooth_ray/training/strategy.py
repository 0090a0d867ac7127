"""How several workers share one model: one function a strategy, on CPUs and GPUs alike."""

import logging
import os
from pathlib import Path
from typing import Any

import ray.train.torch
import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from ray.train.lightning import RayDDPStrategy

from dreambooth_ray.config.schema import Config


def make_strategy(config: Config, world_size: int, universal: bool) -> Strategy:
    """The configured strategy, under Ray Train.

    universal: whether a state that is to be loaded was made by `make_universal`
    """
    if config.train.strategy == "fsdp2":
        return _RayFullyShardedStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    if config.train.strategy == "deepspeed":
        return _make_deepspeed(config, universal)
    # Buffers are constants here: nobody has to be told of them at every step.
    strategy: Strategy = RayDDPStrategy(
        gradient_as_bucket_view=True, broadcast_buffers=False, checkpoint_io=DirectCheckpointIO()
    )
    return strategy


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a state once, straight to its file.

    Lightning's own builds it in memory, copies it and writes that, so that no half file
    is ever seen. Ours goes to a folder of its own, and is only seen once it is committed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """path: a local file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)


class _RayFullyShardedStrategy(ModelParallelStrategy):
    """FSDP2, every worker with the device that Ray gave it."""

    @property
    def root_device(self) -> torch.device:
        device: torch.device = ray.train.torch.get_device()
        return device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def _determine_device_ids(self) -> list[int]:
        return [self.root_device.index or 0]


class _RayZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed, every worker with the device that Ray gave it, also where that is a CPU."""

    @property
    def root_device(self) -> torch.device:
        device: torch.device = ray.train.torch.get_device()
        # DeepSpeed wants to know which CPU.
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """As Lightning's, less its insistence on CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """As Lightning's, less its check of device indices, which Ray has already seen to."""
        import deepspeed  # noqa: PLC0415  an extra

        # Compiled on first use otherwise, and a worker killed then leaves a lock that the next
        # one waits for without end. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def _make_deepspeed(config: Config, universal: bool) -> Strategy:
    if not config.cluster.gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed_config = config.train.deepspeed
    strategy = _RayZeroStrategy(
        stage=deepspeed_config.stage,
        offload_optimizer=deepspeed_config.offload,
        overlap_comm=False,
        logging_batch_size_per_gpu=1,
        logging_level=logging.ERROR,
        exclude_frozen_parameters=True,
    )
    assert isinstance(strategy.config, dict)
    # The configured optimizer runs there too, without compiling another one.
    strategy.config["zero_force_ds_cpu_optimizer"] = False
    if universal:
        strategy.config["checkpoint"] = {"load_universal": True}
    return strategy
