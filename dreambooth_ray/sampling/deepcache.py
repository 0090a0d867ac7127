"""A UNet's outermost layers alone, over deep features of an earlier step.

Between neighbouring steps the deep layers' output changes little, so it may be computed
now and then and kept (DeepCache, Ma et al. 2023, arXiv 2312.00858). What is left of a step
is the first block down, without its downsampling, and the last block up.

Legend: R rows, F features, h, w latent sides.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class DeepCache:
    """`network` shares every weight with the UNet, and does without its middle."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._last = unet.up_blocks[-1]
        first = _twin(unet.down_blocks[0])
        first.downsamplers = None
        self.network = _twin(unet)
        self.network.down_blocks = nn.ModuleList([first])
        self.network.mid_block = None
        self.network.up_blocks = nn.ModuleList([self._last])

    @contextmanager
    def keeping(self) -> Iterator[list[Tensor]]:
        """Collects what goes into the last block: (R, F, h, w) for each forward inside."""
        kept: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
            kept.append(options["hidden_states"])

        handle = self._last.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield kept
        finally:
            handle.remove()

    @contextmanager
    def giving(self, deep: Tensor) -> Iterator[None]:
        """Puts (R, F, h, w) kept features into the last block instead of what comes."""

        def replace(
            module: nn.Module, inputs: Any, options: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            return inputs, {**options, "hidden_states": deep}

        handle = self._last.register_forward_pre_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _twin(module: Any) -> Any:
    """A copy with a list of children of its own; the children are shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
