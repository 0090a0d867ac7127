"""A network as it was before training, beside the one that is trained."""

import copy

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def copy_untrained(network: nn.Module, *, shares_weights: bool) -> nn.Module:
    """The network that adapters were added to, or whose weights are about to be trained; frozen.

    What is trained is copied, and adapters are left out. Call it before the first step.
    shares_weights: whether frozen weights are the network's own, and take no memory again; not
        where a strategy shards or casts them in place
    """
    shared = [p for p in network.parameters() if not p.requires_grad] if shares_weights else []
    # What deepcopy has in its memo, it takes for copied.
    untrained = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    _remove_adapters(untrained)
    return untrained.requires_grad_(False).eval()


def _remove_adapters(network: nn.Module) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            network.set_submodule(name, module.get_base_layer())
