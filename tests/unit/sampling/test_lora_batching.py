"""Rows of different adapters in one forward give what peft gives for each adapter alone."""

import gc
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from dreambooth_ray.adapters.layer_adapter import LayerAdapter
from dreambooth_ray.config.adapter_mix import AdapterMix, AdapterUse
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork

TARGETS = {"narrow": ["first"], "wide": ["first", "last"], "scaled": ["last"], "conv": ["conv"],
           "dora": ["first"], "loha": ["first"], "lokr": ["first", "last"]}  # fmt: skip
PLAIN = ["narrow", "wide", "scaled"]


class Network(nn.Module):
    """A convolution over tokens between two linear layers; (R, T, 4) to (R, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.tanh(self.first(x))
        return torch.as_tensor(self.last(self.conv(middle[:, None])[:, 0]))


def build_config(name: str, rank: int) -> PeftConfig:
    targets = TARGETS[name]
    if name in ("loha", "lokr"):
        kind = LoHaConfig if name == "loha" else LoKrConfig
        return kind(r=rank, alpha=2 * rank + 1, target_modules=targets, init_weights=False)
    return LoraConfig(
        r=rank, lora_alpha=2 * rank + 1, target_modules=targets, use_dora=name == "dora",
        init_lora_weights=False,
    )  # fmt: skip


class Wrapped:
    """A network of peft's with one adapter, and that adapter as we have it."""

    def __init__(self, name: str, rank: int) -> None:
        torch.manual_seed(rank)
        self.network = get_peft_model(Network(), build_config(name, rank)).eval()
        self.layers = {}
        for layer in TARGETS[name]:
            module = self.network.base_model.model.get_submodule(layer)
            self.layers[layer] = LayerAdapter(
                read_factors(module),
                module.scaling["default"],
                magnitude=module.lora_magnitude_vector["default"].weight.detach()
                if name == "dora"
                else None,
            )


def read_factors(module: nn.Module) -> Mapping[str, Tensor]:
    roles = {"lora_A.default.weight": "down", "lora_B.default.weight": "up"}
    factors = {}
    for key, tensor in module.named_parameters():
        role = roles.get(key) or key.removesuffix(".default")
        if role in ("down", "up") or role.startswith(("hada_", "lokr_")):
            factors[role] = tensor.detach()
    return factors


@pytest.fixture(scope="module")
def wrapped() -> dict[str, Wrapped]:
    return {name: Wrapped(name, rank) for rank, name in enumerate(TARGETS, start=1)}


@pytest.fixture(scope="module")
def adapted(wrapped: dict[str, Wrapped]) -> AdaptedNetwork:
    network = AdaptedNetwork(Network().eval())
    for name, own in wrapped.items():
        network.add_adapter(name, own.layers)
    return network


@torch.no_grad()
def run_alone(wrapped: dict[str, Wrapped], x: Tensor, name: str | None) -> Tensor:
    """By peft."""
    return torch.as_tensor((wrapped[name].network if name else Network())(x))


def mix_of(*names: str | None) -> AdapterMix:
    return tuple(AdapterUse(name) for name in names if name)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([None, *PLAIN]), min_size=1, max_size=6))
def test_every_row_is_as_its_adapter_alone_has_it(
    wrapped: dict[str, Wrapped], adapted: AdaptedNetwork, names: list[str | None]
) -> None:
    x = torch.randn(len(names), 5, 4)
    references = torch.stack(
        [run_alone(wrapped, row[None], n)[0] for row, n in zip(x, names, strict=True)]
    )
    for _ in range(2):
        torch.testing.assert_close(
            adapted(x, adapters=[mix_of(name) for name in names]), references
        )
    torch.testing.assert_close(adapted.network(x), run_alone(wrapped, x, None), rtol=0, atol=0)


def test_a_new_batch_is_put_together_anew(
    wrapped: dict[str, Wrapped], adapted: AdaptedNetwork
) -> None:
    x = torch.randn(2, 5, 4)
    for names in (("narrow", None), (None, "wide"), ("scaled",)):
        outputs = adapted(x[: len(names)], adapters=[mix_of(name) for name in names])
        for row, name in enumerate(names):
            torch.testing.assert_close(outputs[row], run_alone(wrapped, x[row : row + 1], name)[0])


@pytest.mark.parametrize("name", ["conv", "dora", "loha", "lokr"])
def test_what_is_no_plain_lora_has_a_forward_of_its_own(
    wrapped: dict[str, Wrapped], adapted: AdaptedNetwork, name: str
) -> None:
    x, mix = torch.randn(2, 5, 4), mix_of(name)
    assert adapted.is_unbatchable(mix)
    torch.testing.assert_close(adapted(x, adapters=[mix, mix]), run_alone(wrapped, x, name))
    assert not adapted.is_unbatchable(mix_of(*PLAIN))


@torch.no_grad()
def merge(wrapped: dict[str, Wrapped], mix: AdapterMix) -> Network:
    """A network with all in its weights, by peft's own merged weights."""
    network, base = Network(), Network().state_dict()
    weights = {name: tensor.clone() for name, tensor in base.items()}
    for use in mix:
        torch.manual_seed(0)
        own = Wrapped(use.name, list(TARGETS).index(use.name) + 1).network.merge_and_unload()
        for name, tensor in own.state_dict().items():
            weights[name] += use.weight * (tensor - base[name])
    network.load_state_dict(weights)
    return network


def test_a_row_can_go_through_several_adapters_with_weights(
    wrapped: dict[str, Wrapped], adapted: AdaptedNetwork
) -> None:
    x = torch.randn(3, 5, 4)
    mixes: list[AdapterMix] = [
        (AdapterUse("narrow", 0.5), AdapterUse("wide", -1.5)),
        (),
        (AdapterUse("scaled", 0.3), AdapterUse("wide", 2.0), AdapterUse("narrow")),
    ]
    outputs = adapted(x, adapters=mixes)
    for row, mix in enumerate(mixes):
        torch.testing.assert_close(outputs[row], merge(wrapped, mix)(x[row : row + 1])[0])
    mixed = (AdapterUse("dora", 0.6), AdapterUse("loha", -0.4), AdapterUse("narrow", 1.2))
    torch.testing.assert_close(adapted(x, adapters=[mixed] * 3), merge(wrapped, mixed)(x))


def count_tensors() -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


def test_weights_that_nobody_uses_any_more_take_no_memory(adapted: AdaptedNetwork) -> None:
    """Callers choose weights freely: each mix may come once in the life of an endpoint."""
    x = torch.randn(1, 5, 4)
    counts = []
    for number in range(20):
        adapted(x, adapters=[(AdapterUse("wide", 0.1 + number / 100),)])
        counts.append(count_tensors())
    assert max(counts[1:]) == counts[1]


def test_an_adapter_that_goes_leaves_the_others() -> None:
    one, two = Wrapped("wide", 2), Wrapped("loha", 6)
    network, x = AdaptedNetwork(Network().eval()), torch.randn(2, 5, 4)
    network.add_adapter("one", one.layers)
    network.add_adapter("two", two.layers)
    network.remove_adapter("two")
    torch.testing.assert_close(network(x, adapters=[mix_of("one")] * 2), one.network(x))
    network.remove_adapter("one")
    assert "forward" not in network.network.first.__dict__
    torch.testing.assert_close(network(x, adapters=[mix_of("one")] * 2), Network()(x))
