"""A network as it was before training, beside the one that is trained."""

import copy

from torch import nn

from dreambooth_ray.compat.peft import list_adapted_layers


def copy_untrained(network: nn.Module, *, shares_weights: bool) -> nn.Module:
    """The network that adapters were added to, or whose weights are about to be trained; frozen.

    What is trained is copied, and adapters are left out. Call it before the first step.
    shares_weights: whether frozen weights are the network's own, and take no memory again; not
        where a strategy shards or casts them in place
    """
    shared_weights = (
        [p for p in network.parameters() if not p.requires_grad] if shares_weights else []
    )
    # What deepcopy has in its memo, it takes for copied.
    untrained = copy.deepcopy(network, {id(tensor): tensor for tensor in shared_weights})
    for name, adapted_layer in list_adapted_layers(untrained):
        untrained.set_submodule(name, adapted_layer.get_base_layer())
    return untrained.requires_grad_(False).eval()
