"""A UNet's layers under the names of its authors, which files of other trainers have."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dreambooth_ray.models.kohya_names import AdapterFileLayer
from dreambooth_ray.models.single_file_names import UNetBlocks, find_original_unet_name
from dreambooth_ray.models.weight_files import find_weights


def list_adapter_layer_names(directory: Path, layer: str) -> Sequence[AdapterFileLayer]:
    """As `ModelFamily.list_adapter_layer_names`."""
    try:
        file_weight_name = find_original_unet_name(f"{layer}.weight", _read_unet_blocks(directory))
    except (ValueError, KeyError):  # a layer that only diffusers' UNets have
        return ()
    return (AdapterFileLayer(file_weight_name.removesuffix(".weight")),)


@lru_cache(maxsize=1)
def _read_unet_blocks(directory: Path) -> UNetBlocks:
    return UNetBlocks.of_names(find_weights(directory / "unet", "unet").read_shapes())
