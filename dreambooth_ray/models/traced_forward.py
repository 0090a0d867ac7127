"""A network's forward, traced once and then run without Python between its operations.

On a CPU a quarter of a small UNet's forward is Python: modules calling modules. A trace is
torch.jit's, run as it was traced, with nothing fused or reordered, so that outputs and
gradients equal the network's bit for bit. This is checked: for every shape of inputs a trace
is first compared with the network itself, and is not used where they differ.
"""

import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_ray.compat.torch import run_trace_unoptimized

# Tracing a small UNet takes the time that about so many traced forwards save.
WARMUP_CALLS = 100
# Most traces of one network: one serves all shapes that it is right for.
MAX_TRACES = 4
# torch keeps one tracing state for the whole process.
_trace_lock = threading.Lock()

InputKey = tuple[Any, ...]


class TracedForward:
    """Calls a network, or a trace of it.

    network:      takes tensors and returns one; its weights may change, its layers may not
    warmup_calls: calls of the network itself before it is traced
    """

    def __init__(self, network: nn.Module, warmup_calls: int) -> None:
        self._network, self._warmup_calls_left = network, warmup_calls
        # `train` and `eval` are called on the wrapped network, not on its wrapper.
        self._core = next(network.children(), network)
        self._trace_by_key: dict[InputKey, Any] = {}
        self._traces: list[Any] = []

    @property
    def num_traces(self) -> int:
        """Number of traces."""
        return len(self._traces)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output, with gradients where it has them."""
        input_key = (self._core.training, *((x.shape, x.dtype, x.stride()) for x in inputs))
        if input_key not in self._trace_by_key:
            if self._warmup_calls_left > 0:
                self._warmup_calls_left -= 1
                return torch.as_tensor(self._network(*inputs))
            self._trace_by_key[input_key], network_output = self._find_trace(inputs)
            if not (torch.is_grad_enabled() or self._core.training):
                return network_output
        trace = self._trace_by_key[input_key]
        return torch.as_tensor(
            self._network(*inputs) if trace is None else run_trace_unoptimized(trace, inputs)
        )

    @torch.no_grad()
    def _find_trace(self, inputs: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
        """A trace that is right for these inputs, or None; and the network's output."""
        network_output = _run_keeping_rng(self._network, inputs)
        for trace in self._traces:
            if _trace_equals_network(trace, inputs, network_output):
                return trace, network_output
        if len(self._traces) == MAX_TRACES:
            return None, network_output
        new_trace = _trace_network(self._network, inputs)
        if new_trace is None or not _trace_equals_network(new_trace, inputs, network_output):
            return None, network_output
        self._traces.append(new_trace)
        return new_trace, network_output


def _trace_network(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    # Warnings of torch must neither raise here nor reach the user.
    with _trace_lock, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            return torch.jit.trace(network, inputs, check_trace=False)  # type: ignore[no-untyped-call]
        except Exception:  # a network that can't be traced runs itself
            return None


def _trace_equals_network(trace: Any, inputs: tuple[Tensor, ...], reference: Tensor) -> bool:
    try:
        trace_output = _run_keeping_rng(lambda *x: run_trace_unoptimized(trace, x), inputs)
    except RuntimeError:  # traced for other shapes
        return False
    return torch.equal(trace_output, reference)


def _run_keeping_rng(forward: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """The output; torch's generator is left as it was before."""
    with torch.random.fork_rng(devices=[]):
        return torch.as_tensor(forward(*inputs))
