"""Of torch: what it marks as its own or documents nowhere, small enough to be imported anywhere.

Private: Tensor._base, Module._modules, torch.jit.optimized_execution.
"""

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def storage_owner(tensor: Tensor) -> Tensor:
    """The tensor that a view is of; the tensor itself where it is no view."""
    return tensor if tensor._base is None else tensor._base


def shallow_copy_module(module: _Module) -> _Module:
    """A copy with its own list of children; children, weights and buffers are shared."""
    module_copy = copy.copy(module)
    module_copy._modules = dict(module._modules)
    return module_copy


def run_trace_unoptimized(trace: Any, inputs: tuple[Tensor, ...]) -> Any:
    """Run a trace as it was recorded: torch's optimizer has other derivatives, which round
    differently.
    """
    with cast(Any, torch.jit).optimized_execution(False):
        return trace(*inputs)
