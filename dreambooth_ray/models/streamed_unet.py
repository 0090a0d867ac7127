"""A UNet that is written weight by weight, each read from its file when its turn comes.

Of a model of full size nothing but the weight that is being written is in memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from dreambooth_ray.models import lora
from dreambooth_ray.models.model_directory import adapted_base, base_directory, loaded_weights
from dreambooth_ray.models.tensor_files import (
    LazyTensors,
    TensorSource,
    list_sources,
    open_tensors,
    write_tensors,
)
from dreambooth_ray.storage import paths


def list_unet_sources(
    unet: UNet2DConditionModel, directory: Path, trained: Mapping[str, Tensor] | None = None
) -> dict[str, TensorSource]:
    """Where each weight of a UNet is to be read from.

    directory: what `unet` was loaded from, a model or an adapter bundle
    trained: weights that take the place of the model's own
    """
    own_weights = unet.state_dict()
    adapted_layers = _find_adapted_layers(directory)
    stored = _open_stored(base_directory(directory))
    # What was fused is in memory, and so is what goes by another name in the file of an old model.
    names = [
        name
        for name in own_weights
        if name in stored and name.rpartition(".")[0] not in adapted_layers
    ]
    unchanged = LazyTensors(names, lambda name: stored[name])
    return list_sources(own_weights, trained or {}, unchanged)


def _open_stored(directory: Path) -> Mapping[str, Tensor]:
    names = loaded_weights(directory / "unet")
    return open_tensors(directory / "unet" / next(iter(names))) if len(names) == 1 else {}


def _find_adapted_layers(directory: Path) -> frozenset[str]:
    file = directory / paths.ADAPTER / "unet" / lora.WEIGHTS
    if adapted_base(directory) is None or not file.is_file():
        return frozenset()
    return frozenset(
        name.removeprefix(lora.PREFIX).partition(".lora_")[0] for name in open_tensors(file)
    )


def stream_unet(unet: UNet2DConditionModel, sources: Mapping[str, TensorSource]) -> None:
    """Have the UNet's save_pretrained write its weights from these sources, one by one."""

    def save_pretrained(save_directory: str | Path, **_: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        unet.save_config(folder)
        write_tensors(folder / SAFETENSORS_WEIGHTS_NAME, sources, {"format": "pt"})

    # A pipeline saves its parts by this method.
    unet.save_pretrained = save_pretrained
