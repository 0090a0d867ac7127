import inspect
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

from dreambooth_ray.compat.peft import (
    has_adapter,
    is_plain_lora,
    list_lora_layers,
    lora_rank,
    lora_weights,
    mixed_adapters,
    parse_adapter_name,
    unload_adapters,
)
from tests.unit.compat.private_api import check_source, find_private


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.last(self.first(x)))


@pytest.fixture
def model() -> PeftModel:
    torch.manual_seed(0)
    plain = LoraConfig(r=2, lora_alpha=3, target_modules=["first"], init_lora_weights=False)
    dora = LoraConfig(r=1, target_modules=["first"], use_dora=True, init_lora_weights=False)
    model = get_peft_model(Network(), plain, adapter_name="plain")
    model.add_adapter("dora", dora)
    return model.eval().requires_grad_(False)


def first_layer(model: PeftModel) -> Any:
    ((_, layer),) = list_lora_layers(model)
    return layer


def test_peft_still_has_what_is_used_of_it(model: PeftModel) -> None:
    (hooks,) = find_private("peft", "peft", "PeftModel._enable_peft_forward_hooks", user="peft.py")
    assert inspect.isgeneratorfunction(inspect.unwrap(hooks))
    lora_model, _, layer_class = find_private(
        "peft", "peft.tuners.lora", "LoraModel._enable_peft_forward_hooks", "layer.Linear",
        "LoraLayer", user="peft.py",
    )  # fmt: skip
    check_source("peft", lora_model, ["adapter_names"], user="peft.py")
    check_source("peft", inspect.getmodule(layer_class), ["__base__"], user="peft.py")
    names = ("lora_A", "lora_B", "lora_embedding_A", "lora_bias", "lora_variant", "r", "scaling",
             "base_layer", "in_features", "out_features")  # fmt: skip
    missing = [name for name in names if not hasattr(first_layer(model), name)]
    assert missing == [], "peft: LoraLayer keeps these elsewhere; see dreambooth_ray/compat/peft.py"


def test_an_adapter_is_the_product_of_its_weights(model: PeftModel) -> None:
    layer, x = first_layer(model), torch.randn(5, 4)
    assert (has_adapter(layer, "plain"), has_adapter(layer, "none")) == (True, False)
    assert lora_rank(layer, "plain") == 2
    down, up = lora_weights(layer, "plain")
    model.set_adapter("plain")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ down @ up)


def test_only_plain_lora_is_called_plain(model: PeftModel) -> None:
    layer = first_layer(model)
    assert is_plain_lora(layer, {"plain", "another"})
    assert is_plain_lora(layer, {"another"})
    assert not is_plain_lora(layer, {"plain", "dora"})


def test_each_row_has_its_own_adapter_or_none(model: PeftModel) -> None:
    x = torch.randn(2, 4)
    with mixed_adapters(model, ["plain", None]):
        mixed = model.get_base_model()(x)
    model.set_adapter("plain")
    torch.testing.assert_close(mixed[0], model(x)[0])
    with model.disable_adapter():
        torch.testing.assert_close(mixed[1], model(x)[1])


def test_an_unloaded_network_can_be_wrapped_again(model: PeftModel) -> None:
    network = unload_adapters(model)
    assert list_lora_layers(network) == []
    assert not hasattr(network, "peft_config")


def test_weights_of_an_adapter_are_told_by_their_names() -> None:
    network = Network()
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["first"], use_dora=True), network)
    names = [name for name, weight in network.named_parameters() if "lora" in name]
    assert [parse_adapter_name(name) for name in names] == [
        ("first", "down"), ("first", "up"), ("first", "magnitude"),
    ], "peft: weights of adapters are called otherwise"  # fmt: skip
    with pytest.raises(ValueError, match="no weight of a LoRA"):
        parse_adapter_name("first.base_layer.weight")
