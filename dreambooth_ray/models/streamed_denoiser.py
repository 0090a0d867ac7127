"""A denoiser that is written weight by weight, each read from its file when its turn comes.

Of a model of full size nothing but the weight that is being written is in memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from dreambooth_ray.models.model_directory import (
    adapted_base,
    base_directory,
    list_loaded_weight_files,
)
from dreambooth_ray.models.peft_files import WEIGHTS, layer_of
from dreambooth_ray.models.tensor_files import (
    LazyTensors,
    TensorSource,
    choose_tensor_sources,
    open_tensors,
    write_tensors,
)
from dreambooth_ray.storage import paths


def list_denoiser_sources(
    denoiser: Any, name: str, directory: Path, trained: Mapping[str, Tensor] | None = None
) -> dict[str, TensorSource]:
    """Where each weight of a denoiser is to be read from.

    name: of its folder; directory: what it was loaded from, a model or an adapter bundle
    trained: weights that take the place of the model's own
    """
    denoiser_weights = denoiser.state_dict()
    adapted_layers = _find_adapted_layers(directory, name)
    stored_weights = _open_stored_weights(base_directory(directory) / name)
    # What was fused is in memory, and so is what goes by another name in the file of an old model.
    unchanged_weight_names = [
        weight_name
        for weight_name in denoiser_weights
        if weight_name in stored_weights and weight_name.rpartition(".")[0] not in adapted_layers
    ]
    unchanged_weights = LazyTensors(unchanged_weight_names, stored_weights.__getitem__)
    return choose_tensor_sources(denoiser_weights, trained or {}, unchanged_weights)


def _open_stored_weights(folder: Path) -> Mapping[str, Tensor]:
    weight_files = list_loaded_weight_files(folder)
    return open_tensors(folder / next(iter(weight_files))) if len(weight_files) == 1 else {}


def _find_adapted_layers(directory: Path, name: str) -> frozenset[str]:
    adapter_file = directory / paths.ADAPTER / name / WEIGHTS
    if adapted_base(directory) is None or not adapter_file.is_file():
        return frozenset()
    return frozenset(map(layer_of, open_tensors(adapter_file)))


def patch_save_pretrained(denoiser: Any, sources: Mapping[str, TensorSource]) -> None:
    """Have the denoiser's save_pretrained write its weights from these sources, one by one.

    What it holds itself is let go of: a mapped file counts as far as anybody has looked at it.
    """
    denoiser.to("meta")

    def save_pretrained(save_directory: str | Path, **_: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        denoiser.save_config(folder)
        write_tensors(folder / SAFETENSORS_WEIGHTS_NAME, sources, {"format": "pt"})

    # A pipeline saves its parts by this method.
    denoiser.save_pretrained = save_pretrained
