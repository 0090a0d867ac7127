"""A recording gives what its network gives, bit for bit, or is not used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.source import model_directory
from dreambooth_ray.models.traced_forward import MAX_TRACES, Plain, TracedForward


class Network(nn.Module):
    """(R, 4) to (R, 4); counts how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.first(x))


class Fickle(Network):
    """Does something else for every number of rows, which a recording does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len(x)


class Dropping(Network):
    """Draws at random."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Unrecordable(Network):
    """Asks for a number in the middle of it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("not to be recorded")
        return super().forward(x)


def test_a_shape_that_comes_again_is_played() -> None:
    network = Network()
    recorder = TracedForward(network, 0)
    for _ in range(2):
        recorder(torch.randn(3, 4))
    assert recorder.num_recordings == 1
    calls, x = network.calls, torch.randn(3, 4)
    played = recorder(x)
    assert network.calls == calls
    assert torch.equal(played, network(x))


def test_few_calls_are_not_worth_a_recording() -> None:
    recorder = TracedForward(Network(), 10)
    for _ in range(10):
        recorder(torch.randn(3, 4))
    assert recorder.num_recordings == 0
    recorder(torch.randn(3, 4))
    assert recorder.num_recordings == 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_whatever_comes_it_is_as_the_network_has_it(rows: list[int]) -> None:
    for network in (Network(), Fickle()):
        recorder = TracedForward(network, 0)
        for count in rows:
            x = torch.randn(count, 4)
            assert torch.equal(recorder(x), network(x))
        assert recorder.num_recordings <= MAX_TRACES


def test_weights_that_move_are_played_as_they_are() -> None:
    network = Network()
    recorder, x = TracedForward(network, 0), torch.randn(2, 4)
    for _ in range(3):
        with torch.no_grad():
            network.first.weight.add_(1.0)
        assert torch.equal(recorder(x), network(x))
    assert recorder.num_recordings == 1


def test_draws_are_the_networks_own() -> None:
    network, x = Dropping(), torch.randn(50, 4)
    recorder = TracedForward(network, 0)
    torch.manual_seed(1)
    played = [recorder(x) for _ in range(4)]
    torch.manual_seed(1)
    assert all(torch.equal(found, network(x)) for found in played)
    assert recorder.num_recordings == 1


def test_what_can_not_be_recorded_runs_as_it_is() -> None:
    recorder, x = TracedForward(Unrecordable(), 0), torch.randn(2, 4)
    for _ in range(3):
        recorder(x)
    assert recorder.num_recordings == 0


@pytest.mark.parametrize("rows", [1, 4])
def test_a_unets_outputs_and_gradients_are_the_same_bit_for_bit(rows: int) -> None:
    unet = load_components(model_directory("toyworld")).unet.train()
    network = Plain(unet)
    recorder, width = TracedForward(network, 0), unet.config.cross_attention_dim
    for _ in range(2):
        recorder(torch.randn(2, 8, 16, 16), torch.tensor([500.0] * 2), torch.randn(2, 32, width))
    for _ in range(2):
        inputs = torch.randn(rows, 8, 16, 16), torch.rand(rows) * 999, torch.randn(rows, 32, width)
        gradients = []
        for work in (recorder, network):
            unet.zero_grad()
            work(*inputs).square().mean().backward()
            gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(list(unet.parameters()))
        assert all(map(torch.equal, *gradients))
    # One for all numbers of rows.
    assert recorder.num_recordings == 1
