"""How several workers share one model: one function a strategy, on CPUs and GPUs alike."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies import Strategy
from ray.train.lightning import RayDDPStrategy

from dreambooth_ray.config.schema import Config
from dreambooth_ray.training.fully_sharded import FullyShardedStrategy
from dreambooth_ray.training.zero import make_zero_strategy


def make_strategy(config: Config, world_size: int, universal: bool) -> Strategy:
    """The configured strategy, under Ray Train.

    universal: whether a state that is to be loaded was made by `make_universal`
    """
    if config.train.strategy == "fsdp2":
        return FullyShardedStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    if config.train.strategy == "deepspeed":
        return make_zero_strategy(config, universal)
    # Buffers are constants here: nobody has to be told of them at every step.
    strategy: Strategy = RayDDPStrategy(
        gradient_as_bucket_view=True, broadcast_buffers=False, checkpoint_io=DirectCheckpointIO()
    )
    return strategy


def precision_flag(config: Config) -> Any:
    """What Lightning is told of the precision: nothing where the strategy brings its own."""
    return None if config.train.strategy == "deepspeed" else config.train.precision


def count_threads(config: Config, num_cores: int, num_local_workers: int) -> int:
    """Threads of a worker on a host with so many cores: one, unless its optimizer alone is there.

    A forward on a CPU is fastest with one; an offloaded optimizer walks through all its states.
    """
    if not (config.cluster.gpus and config.train.deepspeed.offload):
        return 1
    is_offloaded = config.train.strategy == "deepspeed"
    return max(1, num_cores // num_local_workers) if is_offloaded else 1


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
