import torch
from torch import nn

from dreambooth_ray.compat.torch import run_trace_unoptimized, shallow_copy_module, storage_owner
from tests.unit.compat.private_api import find_private


def test_torch_still_has_what_is_used_of_it() -> None:
    find_private("torch", "torch", "Tensor._base", "jit.optimized_execution", user="torch.py")
    assert "_modules" in vars(nn.Linear(1, 1)), "torch: Module keeps its children elsewhere"


def test_a_views_storage_is_the_bases() -> None:
    base = torch.arange(6.0)
    assert storage_owner(base[1:].view(5, 1)) is base
    assert storage_owner(base) is base


def test_a_copy_loses_a_child_alone() -> None:
    original = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    clone = shallow_copy_module(original)
    clone[1] = nn.Identity()
    assert isinstance(original[1], nn.ReLU)
    assert clone[0] is original[0]


def test_a_trace_runs_unoptimized() -> None:
    enabled: list[bool] = []

    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    def trace(x: torch.Tensor) -> torch.Tensor:
        enabled.append(torch._C._get_graph_executor_optimize())
        return x * 2

    assert torch.equal(run_trace_unoptimized(trace, (torch.ones(2),)), torch.full((2,), 2.0))
    assert enabled == [False]
    assert torch._C._get_graph_executor_optimize()
    recorded = torch.jit.trace(Network(), (torch.ones(2),))
    assert torch.equal(run_trace_unoptimized(recorded, (torch.ones(2),)), torch.full((2,), 2.0))
