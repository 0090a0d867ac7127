"""Of torch: tensors that have shapes and lifetimes but no contents, and a watch over them.

Private: FakeTensorMode of torch._subclasses, TorchDispatchMode of torch.utils._python_dispatch,
tree_map_only of torch.utils._pytree.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class PeakTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the live bytes of all storages allocated inside its block, without `weights`."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._storage_bytes = WeakIdKeyDictionary()
        for weight_tensor in weights:
            self._storage_bytes[weight_tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator_output = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._track_storage, operator_output)
        return operator_output

    def _track_storage(self, tensor: Tensor) -> None:
        tensor_storage = tensor.untyped_storage()
        if tensor_storage in self._storage_bytes:
            return
        num_bytes = tensor_storage.nbytes()
        self._storage_bytes[tensor_storage] = num_bytes
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(tensor_storage, self._subtract_freed_bytes, num_bytes)

    def _subtract_freed_bytes(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


def list_weight_tensors(networks: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of networks."""
    return [w for n in networks for w in (*n.parameters(), *n.buffers())]


def fake_tensors() -> FakeTensorMode:
    """A block in which tensors have no contents, and nothing is computed."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def measure_peak_bytes(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Most bytes that are live at once in `forward`, weights left out; nothing is computed."""
    with fake_tensors() as fake_mode, torch.no_grad():
        # The mode's own stand-ins: a view of a weight, as a linear layer takes, is one of these.
        fake_weights = [
            fake_mode.from_tensor(weight_tensor) for weight_tensor in list_weight_tensors([network])
        ]
        with PeakTracker(fake_weights) as peak_tracker:
            forward()
    return int(peak_tracker.peak_bytes)
