"""A trace gives what its network gives, bit for bit, or is not used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.families.stable_diffusion_functions import TraceableStableDiffusionUNet
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.traced_forward import MAX_TRACES, TracedForward


class Network(nn.Module):
    """(R, 4) to (R, 4); counts how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.first(x))


class Fickle(Network):
    """Does something else for every number of rows, which a trace does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len(x)


class Dropping(Network):
    """Draws at random."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Untraceable(Network):
    """Asks for a number in the middle of it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("not to be traced")
        return super().forward(x)


def test_a_repeated_shape_runs_its_trace() -> None:
    network = Network()
    traced_forward = TracedForward(network, 0)
    for _ in range(2):
        traced_forward(torch.randn(3, 4))
    assert traced_forward.num_traces == 1
    calls, x = network.calls, torch.randn(3, 4)
    traced_output = traced_forward(x)
    assert network.calls == calls
    assert torch.equal(traced_output, network(x))


def test_no_trace_before_the_warmup_calls() -> None:
    traced_forward = TracedForward(Network(), 10)
    for _ in range(10):
        traced_forward(torch.randn(3, 4))
    assert traced_forward.num_traces == 0
    traced_forward(torch.randn(3, 4))
    assert traced_forward.num_traces == 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_whatever_comes_it_is_as_the_network_has_it(rows: list[int]) -> None:
    for network in (Network(), Fickle()):
        traced_forward = TracedForward(network, 0)
        for count in rows:
            x = torch.randn(count, 4)
            assert torch.equal(traced_forward(x), network(x))
        assert traced_forward.num_traces <= MAX_TRACES


def test_a_trace_uses_the_weights_as_they_change() -> None:
    network = Network()
    traced_forward, x = TracedForward(network, 0), torch.randn(2, 4)
    for _ in range(3):
        with torch.no_grad():
            network.first.weight.add_(1.0)
        assert torch.equal(traced_forward(x), network(x))
    assert traced_forward.num_traces == 1


def test_random_numbers_are_the_networks_own() -> None:
    network, x = Dropping(), torch.randn(50, 4)
    traced_forward = TracedForward(network, 0)
    torch.manual_seed(1)
    traced_outputs = [traced_forward(x) for _ in range(4)]
    torch.manual_seed(1)
    assert all(torch.equal(output, network(x)) for output in traced_outputs)
    assert traced_forward.num_traces == 1


def test_an_untraceable_network_runs_itself() -> None:
    traced_forward, x = TracedForward(Untraceable(), 0), torch.randn(2, 4)
    for _ in range(3):
        traced_forward(x)
    assert traced_forward.num_traces == 0


@pytest.mark.parametrize("rows", [1, 4])
def test_a_unets_outputs_and_gradients_are_the_same_bit_for_bit(rows: int) -> None:
    unet = load_components(model_directory("toyworld")).unet.train()
    network = TraceableStableDiffusionUNet(unet)
    traced_forward, width = TracedForward(network, 0), unet.config.cross_attention_dim
    for _ in range(2):
        traced_forward(
            torch.randn(2, 8, 16, 16), torch.tensor([500.0] * 2), torch.randn(2, 32, width)
        )
    for _ in range(2):
        inputs = torch.randn(rows, 8, 16, 16), torch.rand(rows) * 999, torch.randn(rows, 32, width)
        gradients = []
        for work in (traced_forward, network):
            unet.zero_grad()
            work(*inputs).square().mean().backward()
            gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(list(unet.parameters()))
        assert all(map(torch.equal, *gradients))
    # One for all numbers of rows.
    assert traced_forward.num_traces == 1
