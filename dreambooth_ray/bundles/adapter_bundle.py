"""A bundle of adapters that nothing has trained: put together of others, in peft's format."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

from dreambooth_ray.adapters.adapter import LayerKey
from dreambooth_ray.adapters.layer_adapter import find_layer
from dreambooth_ray.adapters.low_rank import CutProduct
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.model_source import make_absolute
from dreambooth_ray.models.peft_files import PREFIX, SETTINGS, WEIGHTS
from dreambooth_ray.models.tensor_files import TensorSource, write_tensors
from dreambooth_ray.storage import manifest, paths

# Of a bundle that was trained: what stands for its subject.
_SUBJECT_KEYS = ("identifier", "class_noun", "prompt", "subjects", "resolution")


def write_adapter_bundle(
    folder: Path,
    products: Mapping[LayerKey, CutProduct],
    networks: Mapping[str, nn.Module],
    base: tuple[str, Path],
    about: Mapping[str, object],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a bundle into a new folder.

    networks: by part, on any device; base: the model's URI and its directory
    about: of the sources' manifests, and how they were put together
    """
    for part, network in networks.items():
        products_by_layer = {
            layer: product for (name, layer), product in products.items() if name == part
        }
        if products_by_layer:
            _write_part_adapters(folder / paths.ADAPTER / part, products_by_layer, network, dtype)
    base_model_uri, base_folder = base
    subject_manifest_values = {key: about[key] for key in _SUBJECT_KEYS if key in about}
    manifest.write_local_manifest(
        folder,
        {
            **subject_manifest_values,
            "kind": "adapter",
            "method": "lora",
            "sources": about.get("sources", []),
            "base_model": make_absolute(base_model_uri),
            "base_hash": model_hash(base_folder),
            "created_at": time.time(),
        },
    )


def _write_part_adapters(
    folder: Path, products: Mapping[str, CutProduct], network: nn.Module, dtype: torch.dtype
) -> None:
    folder.mkdir(parents=True)
    names_by_module = {module: module_name for module_name, module in network.named_modules()}
    tensor_sources: dict[str, TensorSource] = {}
    rank_by_module: dict[str, int] = {}
    for layer, product in products.items():
        module = find_layer(network, layer)
        assert module is not None
        module_name, weight = names_by_module[module], module.get_parameter("weight")
        down, up = product.down, product.up
        if weight.dim() == 4:
            down, up = down.reshape(-1, *weight.shape[1:]), up[:, :, None, None]
        rank_by_module[module_name] = len(down)
        for suffix, factor_tensor in (("lora_A", down), ("lora_B", up)):
            tensor_source = TensorSource.of(factor_tensor.contiguous()).as_type(dtype)
            tensor_sources[f"{PREFIX}{module_name}.{suffix}.weight"] = tensor_source
    write_tensors(folder / WEIGHTS, tensor_sources, {"format": "pt"})
    (folder / SETTINGS).write_text(
        json.dumps(build_peft_settings(rank_by_module), indent=1, sort_keys=True)
    )


def build_peft_settings(ranks: Mapping[str, int]) -> dict[str, object]:
    """peft's of plain LoRA, by the ranks of layers; every scale is one."""
    max_rank = max(ranks.values())
    # peft takes patterns for ends of names, unless they begin so.
    rank_pattern = {
        f"^{re.escape(name)}": layer_rank
        for name, layer_rank in ranks.items()
        if layer_rank != max_rank
    }
    lora_config = LoraConfig(
        r=max_rank,
        lora_alpha=max_rank,
        target_modules="|".join(re.escape(name) for name in ranks),
        rank_pattern=rank_pattern,
        alpha_pattern=dict(rank_pattern),
    )
    config_values = lora_config.to_dict()
    return {
        **{k: sorted(v) if isinstance(v, set) else v for k, v in config_values.items()},
        "inference_mode": True,
    }
