import pytest
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from dreambooth_ray.compat.peft import list_lora_layers, parse_adapter_name
from tests.unit.compat.private_api import find_private


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)


def test_layers_with_adapters_are_found() -> None:
    find_private("peft", "peft.tuners.lora", "LoraLayer", user="peft.py")
    network = Network()
    assert list_lora_layers(network) == []
    get_peft_model(network, LoraConfig(r=2, target_modules=["last"]))
    ((name, layer),) = list_lora_layers(network)
    assert name == "last"
    assert isinstance(layer.base_layer, nn.Linear)


def test_weights_of_an_injected_adapter_are_told_apart_by_name() -> None:
    network = Network()
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["first"], use_dora=True), network)
    names = [name for name, weight in network.named_parameters() if "lora" in name]
    assert [parse_adapter_name(name) for name in names] == [
        ("first", "down"), ("first", "up"), ("first", "magnitude"),
    ], "peft: weights of adapters are called otherwise"  # fmt: skip
    with pytest.raises(ValueError, match="no weight of a LoRA"):
        parse_adapter_name("first.base_layer.weight")
