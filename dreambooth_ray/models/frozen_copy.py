"""A network as it was before training, beside the one that is trained."""

import copy

from torch import nn

from dreambooth_ray.compat.peft import list_adapted_layers


def copy_base_network(network: nn.Module, *, shares_weights: bool) -> nn.Module:
    """The network that adapters were added to, or whose weights are about to be trained; frozen.

    What is trained is copied, and adapters are left out. Call it before the first step.
    shares_weights: whether frozen weights are the network's own, and take no memory again; not
        where a strategy shards or casts them in place
    """
    reused_weights = (
        [p for p in network.parameters() if not p.requires_grad] if shares_weights else []
    )
    # What deepcopy has in its memo, it takes for copied.
    untrained_network = copy.deepcopy(network, {id(tensor): tensor for tensor in reused_weights})
    for layer_name, adapted_layer in list_adapted_layers(untrained_network):
        untrained_network.set_submodule(layer_name, adapted_layer.get_base_layer())
    return untrained_network.requires_grad_(False).eval()
