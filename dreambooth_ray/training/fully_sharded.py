"""FSDP2 under Ray Train: every worker holds a share of every weight, and saves its own.

A checkpoint is torch.distributed.checkpoint's, of the trained weights and their optimizer's state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from dreambooth_ray.compat.lightning_strategies import RayFullyShardedStrategy
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.training.own_paths import HostCheckpointPathMixin

_WEIGHTS = "state_dict"
# Lightning's file beside the tensors: steps, loops, schedules.
_PROGRESS = "meta.pt"


def shard_networks(
    module: nn.Module, mesh: DeviceMesh, blocks: Mapping[str, Sequence[nn.Module]]
) -> None:
    """Each block of the trained networks in a group of its own, the rest in one.

    blocks: by the name of their network
    """
    for name, network in module.named_children():
        for network_block in blocks.get(name, ()):
            fully_shard(network_block, mesh=mesh)
        fully_shard(network, mesh=mesh)


class FullyShardedStrategy(HostCheckpointPathMixin, RayFullyShardedStrategy):
    """Every worker with the device that Ray gave it; what is frozen is in no checkpoint."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shards of the trained weights, on the CPU."""
        return self._list_trained_weight_shards(StateDictOptions(cpu_offload=True))

    def _list_trained_weight_shards(self, options: StateDictOptions) -> dict[str, Any]:
        assert self.model is not None
        trained_names = {n for n, p in self.model.named_parameters() if p.requires_grad}
        model_state = get_model_state_dict(self.model, options=options)
        return {
            name: weight_tensor
            for name, weight_tensor in model_state.items()
            if name in trained_names
        }

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Trained weights and optimizers, whatever number of workers saved them.

        checkpoint_path: of this host
        raises: CheckpointError if a weight that is trained is not there
        """
        path = Path(checkpoint_path)
        assert self.model is not None
        weights = {_WEIGHTS: self._list_trained_weight_shards(StateDictOptions())}
        _check_weight_names(path, weights[_WEIGHTS])
        load(weights, checkpoint_id=path)
        self.model.load_state_dict(weights[_WEIGHTS], strict=False)
        for index, optimizer in enumerate(self.optimizers):
            optimizer_key = f"optimizer_{index}"
            optimizer_state = {optimizer_key: get_optimizer_state_dict(self.model, optimizer)}
            load(optimizer_state, checkpoint_id=path)
            set_optimizer_state_dict(
                self.model, optimizer, optim_state_dict=optimizer_state[optimizer_key]
            )
        loop_state: dict[str, Any] = torch.load(path / _PROGRESS, weights_only=weights_only)
        return loop_state


def _check_weight_names(path: Path, weights: dict[str, Any]) -> None:
    checkpoint_metadata = FileSystemReader(path).read_metadata()
    missing_names = sorted(
        name
        for name in weights
        if f"{_WEIGHTS}.{name}" not in checkpoint_metadata.state_dict_metadata
    )
    if missing_names:
        raise CheckpointError(
            "the checkpoint holds other weights than the configuration trains, "
            f"{missing_names[0]} for one; it is of another train.method or model"
        )
