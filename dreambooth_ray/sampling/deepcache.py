"""DeepCache: run only the UNet's outermost layers, over cached features of an earlier step.

Between neighbouring steps the deep layers' output changes little, so it can be cached and
reused (Ma et al. 2023, arXiv 2312.00858). The other steps run the first down block, without
its downsampling, and the last up block.

Legend: R rows, F features, h, w latent sides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dreambooth_ray.compat.torch import shallow_copy_module


class DeepCache:
    """`network` shares all weights with the UNet, and has only its outermost blocks."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._last_block = unet.up_blocks[-1]
        first_block = shallow_copy_module(unet.down_blocks[0])
        first_block.downsamplers = None
        self.network = shallow_copy_module(unet)
        self.network.down_blocks = nn.ModuleList([first_block])
        self.network.mid_block = None
        self.network.up_blocks = nn.ModuleList([self._last_block])

    @contextmanager
    def collect_features(self) -> Iterator[list[Tensor]]:
        """Collects the last block's input, (R, F, h, w), for each forward inside."""
        collected_features: list[Tensor] = []

        def collect_hook(module: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
            collected_features.append(options["hidden_states"])

        hook_handle = self._last_block.register_forward_pre_hook(collect_hook, with_kwargs=True)
        try:
            yield collected_features
        finally:
            hook_handle.remove()

    @contextmanager
    def replace_features(self, cached_features: Tensor) -> Iterator[None]:
        """Gives cached features, (R, F, h, w), to the last block instead of its real input."""

        def replace_input_hook(
            module: nn.Module, inputs: Any, options: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            return inputs, {**options, "hidden_states": cached_features}

        hook_handle = self._last_block.register_forward_pre_hook(
            replace_input_hook, with_kwargs=True
        )
        try:
            yield
        finally:
            hook_handle.remove()
