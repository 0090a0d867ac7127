"""How several workers share one model: one function a strategy, on CPUs and GPUs alike."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies import Strategy
from ray.train.lightning import RayDDPStrategy

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.tensor_files import choose_tensor_sources, open_tensors, write_tensors
from dreambooth_ray.training.checkpoint.download import AVERAGE, WEIGHTS, tensor_file
from dreambooth_ray.training.fully_sharded import FullyShardedStrategy
from dreambooth_ray.training.zero_strategy import make_zero_strategy


def make_strategy(config: Config, world_size: int, universal: bool) -> Strategy:
    """The configured strategy, under Ray Train.

    universal: whether a state that is to be loaded was made by `make_universal`
    """
    if config.train.strategy == "fsdp2":
        return FullyShardedStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    if config.train.strategy == "deepspeed":
        return make_zero_strategy(config, universal)
    # Buffers are constants here: nobody has to be told of them at every step.
    strategy: Strategy = ReplicatedStrategy(
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        checkpoint_io=DirectCheckpointIO(is_mapped=config.cluster.gpus),
    )
    return strategy


class ReplicatedStrategy(RayDDPStrategy):  # type: ignore[misc]
    """DDP, where there is anybody to average gradients with.

    The numbers are the same: the average of one is itself.
    """

    def configure_ddp(self) -> None:
        """Wrap the module, unless this worker is alone."""
        if self.world_size > 1:
            super().configure_ddp()


def precision_flag(config: Config) -> Any:
    """What Lightning is told of the precision: nothing where the strategy brings its own."""
    return None if config.train.strategy == "deepspeed" else config.train.precision


def count_threads(config: Config, num_cores: int, num_local_workers: int) -> int:
    """Threads of a worker on a host with so many cores: one, unless its optimizer alone is there.

    A forward on a CPU is fastest with one; an offloaded optimizer walks through all its states.
    """
    if not (config.cluster.gpus and config.train.deepspeed.offload):
        return 1
    is_optimizer_offloaded = config.train.strategy == "deepspeed"
    return max(1, num_cores // num_local_workers) if is_optimizer_offloaded else 1


def set_num_threads(num_threads: int) -> None:
    """Of this process, from now on.

    Lightning sets as many as a host has cores where the environment doesn't say how many: those of
    a first training of a process, which then rounds otherwise than the one that goes on from it.
    """
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a state once, straight to its files; what is trained to files of its own.

    Lightning's own builds it in memory, copies it and writes that, so that no half file
    is ever seen. Ours goes to a folder of its own, and is only seen once it is committed.
    Weights apart from the rest are loaded one by one into their places, and whoever needs them
    alone, to sample or to export, reads nothing else.
    """

    def __init__(self, is_mapped: bool = False) -> None:
        """is_mapped: map the optimizer's state from its file, since it goes to a GPU at once"""
        self._is_mapped = is_mapped

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """path: a local file."""
        checkpoint_state_path, remaining_state = Path(path), dict(checkpoint)
        checkpoint_state_path.parent.mkdir(parents=True, exist_ok=True)
        for weights_key in (WEIGHTS, AVERAGE):
            if weights_key in remaining_state:
                write_tensors(
                    tensor_file(checkpoint_state_path, weights_key),
                    choose_tensor_sources(remaining_state.pop(weights_key)),
                )
        torch.save(remaining_state, checkpoint_state_path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """path: a local file, of this version or an earlier one, which had all in it"""
        checkpoint_state_path = Path(path)
        tensor_files_by_key = {
            weights_key: tensor_file(checkpoint_state_path, weights_key)
            for weights_key in (WEIGHTS, AVERAGE)
        }
        checkpoint_weights_by_key = {
            weights_key: open_tensors(weights_file)
            for weights_key, weights_file in tensor_files_by_key.items()
            if weights_file.is_file()
        }
        # Mapped only where it goes to a GPU at once: on a CPU the optimizer goes on with it.
        checkpoint: dict[str, Any] = torch.load(
            checkpoint_state_path,
            map_location=map_location or "cpu",
            mmap=self._is_mapped,
            weights_only=weights_only,
        )
        return checkpoint | checkpoint_weights_by_key
