"""When graphs are recorded and used; that they compute the same is for `benchmarks.gpu` to show."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from dreambooth_ray.models import graphed_forward
from dreambooth_ray.models.graphed_forward import MAX_GRAPHS, GraphedForward, GraphedTraining


class CountingLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return x + 1


class FakeGraph:
    """Stands for a recording: says that it was used."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], pool: Any) -> None:
        if len(inputs[0]) == 13:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0] + 100


@pytest.fixture(autouse=True)
def fake_graphs() -> Any:
    with (
        patch.object(graphed_forward, "_Graph", FakeGraph),
        patch.object(torch.cuda, "graph_pool_handle", return_value=(0, 1)),
        patch.object(torch.cuda, "empty_cache"),
    ):
        yield


def test_a_shape_is_recorded_after_its_first_calls() -> None:
    layer = CountingLayer()
    forward = GraphedForward(layer, warmup_calls=2)
    outputs = [float(forward(torch.zeros(3))[0]) for _ in range(4)]
    assert outputs == [1, 1, 100, 100]
    assert float(forward(torch.zeros(4))[0]) == 1
    assert (layer.num_calls, forward.num_graphs) == (3, 1)


def test_a_shape_that_cannot_be_recorded_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    forward = GraphedForward(CountingLayer(), warmup_calls=0)
    assert float(forward(torch.zeros(13))[0]) == 1
    assert float(forward(torch.zeros(13))[0]) == 1
    assert forward.num_graphs == 0
    assert [r.getMessage() for r in caplog.records] == [
        "a forward runs without its CUDA graph: operation not permitted when stream is capturing"
    ]


def test_the_number_of_graphs_is_bounded() -> None:
    forward = GraphedForward(CountingLayer(), warmup_calls=0)
    outputs = [float(forward(torch.zeros(20 + k))[0]) for k in range(MAX_GRAPHS + 2)]
    assert outputs == [100] * MAX_GRAPHS + [1, 1]


def test_training_is_recorded_once_and_only_with_gradients() -> None:
    layer = CountingLayer()
    training = GraphedTraining(layer)
    with patch.object(
        torch.cuda, "make_graphed_callables", return_value=lambda x: x + 100
    ) as recording:
        outputs = [float(training(torch.zeros(3))[0]) for _ in range(4)]
        with torch.no_grad():
            outputs.append(float(training(torch.zeros(3))[0]))
        outputs.append(float(training(torch.zeros(5))[0]))
        training.release()
        outputs.append(float(training(torch.zeros(3))[0]))
    assert outputs == [1, 1, 100, 100, 1, 1, 1]
    assert recording.call_count == 1


def test_a_graph_is_recorded_anew_where_weights_have_moved() -> None:
    layer = nn.Linear(3, 3)
    forward = GraphedForward(layer, warmup_calls=1)
    inputs = torch.zeros(2, 3)
    forward(inputs)
    assert float(forward(inputs)[0, 0]) == 100
    layer.weight.data = layer.weight.data.clone()
    assert torch.equal(forward(inputs), layer(inputs))
    assert float(forward(inputs)[0, 0]) == 100
