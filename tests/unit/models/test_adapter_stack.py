"""Adapters of several subjects in one forward, against peft's own of each alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import lora
from dreambooth_ray.models.adapter_stack import (
    TrainingAdapterStack,
    copy_network_without_memory,
    make_adapter,
)
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.slot_adapter_layers import StackedLayer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "downsamplers.0.conv", "conv_shortcut", "to_q")
RANKS = (2, 4, 3)
NUM_ROWS = 2
# Far below what float32 can tell of numbers of this size.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture
def unet(tiny_model: Path) -> Any:
    return load_components(tiny_model).denoiser.requires_grad_(False).train()


def make_inputs(unet: Any, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    rows = NUM_ROWS * num_slots
    return torch.randn(rows, 4, 16, 16), torch.arange(rows) * 90, torch.randn(rows, 5, 32)


def run(network: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.as_tensor(network(*inputs, return_dict=False)[0])


def make_random_adapters(
    unet: Any, targets: tuple[str, ...], configs: list[LoraConfig]
) -> list[tuple[Any, dict[str, nn.Parameter]]]:
    """Networks with one adapter each, learnt a little, and its weights."""
    adapted = []
    for seed, config in enumerate(configs):
        network = copy.deepcopy(unet)
        lora.inject_adapters(network, config, targets, seed)
        weights = {n: p for n, p in network.named_parameters() if p.requires_grad}
        torch.manual_seed(10 + seed)
        for weight in weights.values():
            weight.data += 0.1 * torch.randn(weight.shape)
        adapted.append((network, weights))
    return adapted


def stack_adapters(
    unet: Any, targets: tuple[str, ...], configs: list[LoraConfig], num_slots: int
) -> tuple[Any, TrainingAdapterStack]:
    widest = max(configs, key=lambda config: config.rank)
    network = copy.deepcopy(unet)
    return network, TrainingAdapterStack(network, make_adapter(unet, widest, targets, 0), num_slots)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("targets", [ATTENTION, CONVOLUTIONS], ids=["linear", "convolution"])
def test_each_slot_computes_and_learns_as_peft_does(
    unet: Any, targets: tuple[str, ...], dora: bool
) -> None:
    configs = [
        LoraConfig(rank=rank, alpha=2 * rank + 1, dora=dora, rslora=rank == 4) for rank in RANKS
    ]
    adapted = make_random_adapters(unet, targets, configs)
    network, stack = stack_adapters(unet, targets, configs, len(RANKS) + 1)
    for slot, (config, (_, weights)) in enumerate(zip(configs, adapted, strict=True)):
        stack.set_slot_adapter(slot, config, weights)
    inputs = make_inputs(unet, len(stack))
    output = run(network, inputs)
    output[: NUM_ROWS * len(RANKS)].square().sum().backward()
    stack.gather_layer_gradients()
    for slot, (config, (alone, weights)) in enumerate(zip(configs, adapted, strict=True)):
        rows = slice(NUM_ROWS * slot, NUM_ROWS * (slot + 1))
        expected = run(alone, tuple(x[rows] for x in inputs))
        expected.square().sum().backward()
        torch.testing.assert_close(output[rows], expected, **CLOSE)
        gradients = stack.view_adapter_row(stack.gradients[slot], config.rank)
        assert list(gradients) == list(weights)
        for name, weight in weights.items():
            assert weight.grad is not None
            scale = float(weight.grad.abs().max())
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-4 * scale)
    empty = slice(NUM_ROWS * len(RANKS), None)
    torch.testing.assert_close(output[empty], run(unet, tuple(x[empty] for x in inputs)), **CLOSE)
    assert not stack.gradients[len(RANKS)].any()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_padding_has_no_gradient(unet: Any, dora: bool) -> None:
    configs = [LoraConfig(rank=2, dora=dora), LoraConfig(rank=5, dora=dora)]
    network, stack = stack_adapters(unet, CONVOLUTIONS, configs, 2)
    adapted = make_random_adapters(unet, CONVOLUTIONS, configs)
    for slot, (config, (_, weights)) in enumerate(zip(configs, adapted, strict=True)):
        stack.set_slot_adapter(slot, config, weights)
    run(network, make_inputs(unet, 2)).square().sum().backward()
    stack.gather_layer_gradients()
    padding = stack.gradients[0].clone()
    stack.fill_adapter_row(
        padding, 2, {n: torch.zeros(()) for n in stack.view_adapter_row(padding, 2)}
    )
    used = torch.zeros_like(padding)
    stack.fill_adapter_row(used, 2, {n: torch.ones(()) for n in stack.view_adapter_row(used, 2)})
    assert stack.gradients[0][used == 1].any()
    assert not stack.gradients[0][used == 0].any()
    assert not stack.weights[0][used == 0].any()


def poison(stack: TrainingAdapterStack) -> None:
    stack.weights[1].fill_(float("nan"))


def leave(stack: TrainingAdapterStack) -> None:
    stack.clear_slot_adapter(1)


@pytest.mark.parametrize("change", [poison, leave])
def test_what_becomes_of_a_neighbour_changes_no_bit(
    unet: Any, change: Callable[[TrainingAdapterStack], None]
) -> None:
    configs = [LoraConfig(rank=2)] * 3
    network, stack = stack_adapters(unet, CONVOLUTIONS, configs, 3)
    adapted = make_random_adapters(unet, CONVOLUTIONS, configs)
    for slot, (_, weights) in enumerate(adapted):
        stack.set_slot_adapter(slot, configs[slot], weights)
    results = []
    for _ in range(2):
        output = run(network, make_inputs(unet, 3))
        output.square().sum().backward()
        stack.gather_layer_gradients()
        results.append((output.detach()[[0, 1, 4, 5]], stack.gradients[[0, 2]].clone()))
        change(stack)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_new_adapter_is_the_one_that_a_run_alone_begins_with(unet: Any, dora: bool) -> None:
    config = LoraConfig(rank=3, dora=dora)
    adapter = make_adapter(unet, config, CONVOLUTIONS, 5)
    alone = copy.deepcopy(unet)
    lora.inject_adapters(alone, config, CONVOLUTIONS, 5)
    expected = {n: p for n, p in alone.named_parameters() if p.requires_grad}
    assert list(adapter) == list(expected)
    assert all(torch.equal(adapter[name], weight) for name, weight in expected.items())


def test_a_copy_for_adapters_takes_no_memory(unet: Any) -> None:
    empty, shared = (copy_network_without_memory(unet, shares_weights=s) for s in (False, True))
    assert all(p.untyped_storage().nbytes() == 4 for p in empty.parameters())
    assert {p.data_ptr() for p in shared.parameters()} == {p.data_ptr() for p in unet.parameters()}


def test_layers_that_no_stack_can_be_made_of_are_refused(unet: Any) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    weights = {
        "0.lora_A.default.weight": torch.zeros(2, 2, 3, 3),
        "0.lora_B.default.weight": torch.zeros(4, 2, 1, 1),
    }
    with pytest.raises(ConfigError, match=r"train\.lora: 0 \(Conv2d\)"):
        TrainingAdapterStack(network, weights, 2)


def test_the_networks_own_weights_stay_as_they_are(unet: Any) -> None:
    network, stack = stack_adapters(unet, ATTENTION, [LoraConfig(rank=2)], 2)
    layers = [module for module in network.modules() if isinstance(module, StackedLayer)]
    assert len(layers) > 4
    assert stack.rank == 2
    trained = [p for p in network.parameters() if p.requires_grad]
    assert {id(p) for layer in layers for p in (layer.down, layer.up)} == {id(p) for p in trained}
    assert all(p.untyped_storage().data_ptr() == stack.weights.data_ptr() for p in trained)
