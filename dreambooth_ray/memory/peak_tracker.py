"""The most bytes that are alive at once while a computation runs, on real or fake tensors."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class PeakTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the live bytes of all storages allocated inside it, without weights."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._storage_bytes = WeakIdKeyDictionary()
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                self._storage_bytes[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._track_storage, out)
        return out

    def _track_storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._storage_bytes:
            return
        size = storage.nbytes()
        self._storage_bytes[storage] = size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._release_bytes, size)

    def _release_bytes(self, size: int) -> None:
        self.live_bytes -= size
