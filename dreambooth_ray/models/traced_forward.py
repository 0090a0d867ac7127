"""A network's forward, recorded once and played back without Python between its operations.

On a CPU a quarter of a small UNet's forward is Python: modules calling modules. A recording is
torch.jit's trace, run as it was recorded, with nothing fused or rearranged, so that outputs and
gradients are the network's own bit for bit. That is not taken on trust: for every shape of inputs
a recording is first held against the network itself, and is not used where they differ.
"""

import threading
import warnings
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

# A recording of a small UNet takes as long as about so many of its forwards gain by it.
WARMUP_CALLS = 100
# Recordings of one network at most: one serves all shapes that it is right for.
MAX_TRACES = 4
# torch keeps a table for the trace in the making, one for the process.
_tracing = threading.Lock()

Key = tuple[Any, ...]


class Plain(nn.Module):
    """A UNet as a function of tensors alone, which returns one."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor) -> Tensor:
        """x: (R, C, h, w), time: (R,), hidden: (R, T, D); returns (R, C, h, w)."""
        return torch.as_tensor(self.unet(x, time, hidden, return_dict=False)[0])


class TracedForward:
    """Calls a network, or a recording of it.

    network: takes tensors alone and returns one; its weights may change, its layers may not
    worth:   calls before there is a recording, which takes as long as so many gain by it
    """

    def __init__(self, network: nn.Module, worth: int) -> None:
        self._network, self._calls_to_go = network, worth
        # What wraps a network is not told of `train` and `eval`; what is wrapped is.
        self._core = next(network.children(), network)
        self._found: dict[Key, Any] = {}
        self._recordings: list[Any] = []

    @property
    def num_recordings(self) -> int:
        """Recordings there are."""
        return len(self._recordings)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the network returns, with gradients where it has them."""
        key = (self._core.training, *((x.shape, x.dtype, x.stride()) for x in inputs))
        if key not in self._found:
            if self._calls_to_go > 0:
                self._calls_to_go -= 1
                return torch.as_tensor(self._network(*inputs))
            self._found[key], expected = self._search(inputs)
            if not (torch.is_grad_enabled() or self._core.training):
                return expected
        recording = self._found[key]
        return torch.as_tensor(
            self._network(*inputs) if recording is None else _play(recording, inputs)
        )

    @torch.no_grad()
    def _search(self, inputs: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
        """A recording that is right for these inputs, or None; and the network's output."""
        expected = _same_draws(self._network, inputs)
        for recording in self._recordings:
            if _agrees(recording, inputs, expected):
                return recording, expected
        if len(self._recordings) == MAX_TRACES:
            return None, expected
        made = _record(self._network, inputs)
        if made is None or not _agrees(made, inputs, expected):
            return None, expected
        self._recordings.append(made)
        return made, expected


def _record(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    # Another's warnings must not be turned into our error, nor its advice into a user's concern.
    with _tracing, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            return torch.jit.trace(network, inputs, check_trace=False)  # type: ignore[no-untyped-call]
        except Exception:  # whatever can't be recorded is run as it is
            return None


def _agrees(recording: Any, inputs: tuple[Tensor, ...], expected: Tensor) -> bool:
    try:
        found = _same_draws(lambda *x: _play(recording, x), inputs)
    except RuntimeError:  # recorded for shapes that these are not
        return False
    return torch.equal(found, expected)


def _play(recording: Any, inputs: tuple[Tensor, ...]) -> Any:
    # The optimizer of graphs has derivatives of its own, which round otherwise.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return recording(*inputs)


def _same_draws(work: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """What it returns, with torch's generator as it was before."""
    with torch.random.fork_rng(devices=[]):
        return torch.as_tensor(work(*inputs))
