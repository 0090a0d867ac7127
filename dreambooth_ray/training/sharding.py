"""FSDP2: how a module's networks are cut into shards."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard_networks(module: nn.Module, mesh: DeviceMesh) -> None:
    """Each block of the trained networks in a group of its own, the rest in one."""
    for network in module.children():
        for group in _list_blocks(network):
            fully_shard(group, mesh=mesh)
        fully_shard(network, mesh=mesh)


def _list_blocks(network: nn.Module) -> list[nn.Module]:
    blocks = []
    for name in ("down_blocks", "up_blocks"):
        blocks += list(getattr(network, name, []))
    if isinstance(middle_block := getattr(network, "mid_block", None), nn.Module):
        blocks.append(middle_block)
    return blocks
