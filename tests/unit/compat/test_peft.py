from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from dreambooth_ray.compat.peft import (
    forgo_module_dropout,
    list_adapted_layers,
    parse_adapter_weight_name,
)
from tests.unit.compat.private_api import find_private


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)


def test_layers_with_adapters_are_found() -> None:
    find_private("peft", "peft.tuners.tuners_utils", "BaseTunerLayer", user="peft.py")
    network = Network()
    assert list_adapted_layers(network) == []
    get_peft_model(network, LoraConfig(r=2, target_modules=["last"]))
    ((name, layer),) = list_adapted_layers(network)
    assert name == "last"
    assert isinstance(layer.base_layer, nn.Linear)


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_layers_of_lycoris_draw_no_random_numbers_in_training(config: Any) -> None:
    find_private("peft", "peft.tuners.lycoris_utils", "LycorisLayer", user="peft.py")
    network = nn.Sequential(Network().first)
    inject_adapter_in_model(config(r=1, target_modules=["0"]), network)
    states = []
    for forgoes in (False, True):
        if forgoes:
            forgo_module_dropout(network)
        torch.manual_seed(0)
        network.train()(torch.ones(2, 4))
        states.append(torch.get_rng_state())
    drawn, fresh = states
    torch.manual_seed(0)
    assert torch.equal(fresh, torch.get_rng_state())
    assert not torch.equal(drawn, fresh), "peft: it draws no numbers any more, drop this"
    assert network.training


def test_weights_of_an_injected_adapter_are_told_apart_by_name() -> None:
    network = Network()
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["first"], use_dora=True), network)
    names = [name for name, weight in network.named_parameters() if "lora" in name]
    assert [parse_adapter_weight_name(name) for name in names] == [
        ("first", "down"), ("first", "up"), ("first", "magnitude"),
    ], "peft: weights of adapters are called otherwise"  # fmt: skip
    with pytest.raises(ValueError, match="no weight of a LoRA"):
        parse_adapter_weight_name("first.base_layer.weight")
