"""A network's forward, and its backward, as CUDA graphs: recorded once a shape, launched as one.

A forward of a diffusion model is some thousand kernels, and for small batches Python takes
longer to launch them than the GPU to run them. A graph launches them all at once, with the same
kernels in the same order, so outputs are the network's own.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

# A recording costs about three forwards.
WARMUP_CALLS = 3
# torch tunes and allocates in the first of them.
TRAINING_WARMUP_CALLS = 2
# Most graphs of one network: they share their memory, so each costs little beside its largest.
MAX_GRAPHS = 24

logger = logging.getLogger(__name__)

InputKey = tuple[Any, ...]
Address = tuple[torch.device, int] | None


def _find_weight_address(network: nn.Module) -> Address:
    """Where the first weight lies, which moves when the others do."""
    first_weight = next(network.parameters(), None)
    return None if first_weight is None else (first_weight.device, first_weight.data_ptr())


class GraphedForward:
    """Calls a network, or a graph of it; without gradients, from one thread at a time.

    Weights may change in place. Inputs are copied to the graph's own.
    """

    def __init__(self, network: nn.Module, warmup_calls: int = WARMUP_CALLS) -> None:
        """network: takes tensors and returns one; warmup_calls: of each shape, without graph."""
        self._network, self._warmup_calls = network, warmup_calls
        self._num_calls: dict[InputKey, int] = {}
        self._graphs: dict[InputKey, _Graph | None] = {}
        self._memory_pool: Any = None
        self._address: Address = None

    @property
    def num_graphs(self) -> int:
        """Number of graphs."""
        return sum(graph is not None for graph in self._graphs.values())

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output, a tensor of the caller's own."""
        if self._graphs and self._address != _find_weight_address(self._network):
            # Moved weights are elsewhere than the graphs read them.
            self._graphs, self._num_calls = {}, {}
        input_key = tuple((x.shape, x.dtype, x.stride()) for x in inputs)
        if input_key not in self._graphs:
            self._num_calls[input_key] = self._num_calls.get(input_key, 0) + 1
            if self._num_calls[input_key] <= self._warmup_calls or self.num_graphs >= MAX_GRAPHS:
                return torch.as_tensor(self._network(*inputs))
            self._graphs[input_key] = self._record_graph(inputs)
        graph = self._graphs[input_key]
        return torch.as_tensor(self._network(*inputs)) if graph is None else graph(inputs)

    def _record_graph(self, inputs: tuple[Tensor, ...]) -> "_Graph | None":
        self._address = _find_weight_address(self._network)
        if self._memory_pool is None:
            self._memory_pool = torch.cuda.graph_pool_handle()
        try:
            return _Graph(self._network, inputs, self._memory_pool)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            # The network itself is right, only slower.
            logger.warning("a forward runs without its CUDA graph: %s", str(error).splitlines()[0])
            return None


class _Graph:
    """One recorded forward."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], memory_pool: Any) -> None:
        self._own_inputs = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        self._last_inputs: list[Tensor | None] = [None] * len(inputs)
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            network(*self._own_inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may load adapters meanwhile.
        with torch.cuda.graph(self._graph, pool=memory_pool, capture_error_mode="thread_local"):
            self._output = torch.as_tensor(network(*self._own_inputs))

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for index, (static_input, new_input) in enumerate(
            zip(self._own_inputs, inputs, strict=True)
        ):
            # Weights of adapters are the same tensors for as long as a batch stays the same.
            if new_input is not self._last_inputs[index]:
                static_input.copy_(new_input)
                self._last_inputs[index] = new_input
        self._graph.replay()
        return self._output.clone()


class GraphedTraining:
    """Calls a network, or a graph of its forward with another of its backward.

    A gradient is written to the same memory by each backward: steps that add up several backwards
    must not use it. Nor may layers that draw random numbers, or have hooks.
    """

    def __init__(self, network: nn.Module) -> None:
        """network: takes tensors and returns one; it is wrapped, not changed"""
        self._network = network
        self._num_calls: dict[InputKey, int] = {}
        self._graphs: dict[InputKey, Any] = {}

    @property
    def num_graphs(self) -> int:
        """Number of pairs of graphs."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output. The next call overwrites it, so its backward comes before that."""
        if not torch.is_grad_enabled():
            return torch.as_tensor(self._network(*inputs))
        input_key = tuple((x.shape, x.dtype, x.stride(), x.requires_grad) for x in inputs)
        if input_key not in self._graphs:
            self._num_calls[input_key] = self._num_calls.get(input_key, 0) + 1
            # One shape a run: graphs of others would keep activations that nobody needs again.
            if self._num_calls[input_key] <= TRAINING_WARMUP_CALLS or self._graphs:
                return torch.as_tensor(self._network(*inputs))
            self._graphs[input_key] = self._record_graph(inputs)
        graph = self._graphs[input_key]
        return torch.as_tensor(self._network(*inputs) if graph is None else graph(*inputs))

    def release(self) -> None:
        """Drop the graphs for good, and their memory: before the weights are moved."""
        self._graphs = dict.fromkeys(self._graphs)

    def _record_graph(self, inputs: tuple[Tensor, ...]) -> Any:
        example_inputs = tuple(
            x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad)
            for x in inputs
        )
        device_type = inputs[0].device.type
        # The graph gets memory of its own: what the first steps took is given back.
        torch.cuda.empty_cache()
        is_autocast = torch.is_autocast_enabled(device_type)
        autocast_dtype = torch.get_autocast_dtype(device_type)
        try:
            with torch.autocast(
                device_type, autocast_dtype, enabled=is_autocast, cache_enabled=False
            ):
                return torch.cuda.make_graphed_callables(
                    _GraphCaptureWrapper(self._network), example_inputs, allow_unused_input=True
                )
        except (RuntimeError, torch.OutOfMemoryError) as error:
            logger.warning("training runs without CUDA graphs: %s", str(error).splitlines()[0])
            return None


class _GraphCaptureWrapper(nn.Module):
    """torch replaces the forward of the module that it records: this one, and not the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.network(*inputs))
