"""An adapter's file or bundle at a lower rank, and what that loses.

Legend: O and I a layer's output and flattened input, k the new rank.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_ray.adapters.adapter_source import LocalAdapter
from dreambooth_ray.adapters.binding import measure_factors, read_peft_metadata
from dreambooth_ray.adapters.file_keys import group_keys, shorten_key
from dreambooth_ray.adapters.layer_adapter import LayerAdapter
from dreambooth_ray.adapters.low_rank import CutProduct, cut_matrix, cut_product
from dreambooth_ray.adapters.rank_cut_report import RankCutReport
from dreambooth_ray.adapters.scales import LayerScales, check_tensor_is_finite
from dreambooth_ray.bundles.adapter_bundle import build_peft_settings
from dreambooth_ray.bundles.new_path import explained_writing, new_path
from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.peft_files import ADAPTER_METADATA_KEY, PREFIX, SETTINGS, WEIGHTS
from dreambooth_ray.models.tensor_files import TensorSource, open_tensors, write_tensors
from dreambooth_ray.models.weight_files import read_header_and_metadata
from dreambooth_ray.storage import manifest, paths

_FACTORS = ("down", "up", "mid")
_KEPT = ("magnitude", "dora_scale")


@dataclass(frozen=True)
class _RankCutFile:
    """Of a file: tensors to write by key, and products by layer."""

    tensors: Mapping[str, Tensor]
    products: Mapping[str, CutProduct]
    metadata: Mapping[str, str]


def resize_adapter(adapter: LocalAdapter, rank: int, out: Path) -> RankCutReport:
    """Write an adapter whose layers have at most rank `rank`, by the singular values of products.

    Names of layers and DoRA's magnitudes stay; LoHa and LoKr become LoRA. A file gives a file, a
    bundle a bundle; out: a new one
    raises: ConfigError, StorageError
    """
    with new_path(out) as partial_path, explained_writing(out):
        if adapter.path.is_file():
            resized_file = _resize_file(adapter.path, rank)
            _write_resized_file(partial_path, resized_file)
            return RankCutReport.of(resized_file.products)
        return _resize_folder(adapter.path, rank, partial_path)


def _resize_folder(folder: Path, rank: int, out: Path) -> RankCutReport:
    """Of peft's folder, of one with such a folder for each part, or of a bundle's."""
    weight_paths = [
        f.relative_to(folder) for at in (WEIGHTS, f"*/{WEIGHTS}") for f in folder.glob(at)
    ]
    if not weight_paths:
        raise ConfigError(f"{folder} has no {WEIGHTS} in it; give a folder of peft's, or a run")
    is_bundle = folder.name == paths.ADAPTER and (folder.parent / manifest.MANIFEST).is_file()
    adapter_copy_folder = Path(shutil.copytree(folder, out / paths.ADAPTER if is_bundle else out))
    truncated_products: dict[str, CutProduct] = {}
    for weight_file in sorted(adapter_copy_folder / name for name in weight_paths):
        resized_file = _resize_file(weight_file, rank)
        _write_resized_file(weight_file, resized_file)
        peft_settings = json.loads((weight_file.parent / SETTINGS).read_text())
        ranks = {
            name.removeprefix(PREFIX): len(p.down) for name, p in resized_file.products.items()
        }
        resized_settings = build_peft_settings(ranks) | {
            "use_dora": bool(peft_settings.get("use_dora"))
        }
        (weight_file.parent / SETTINGS).write_text(
            json.dumps(resized_settings, indent=1, sort_keys=True)
        )
        truncated_products |= {
            f"{weight_file.parent.name}.{n}": p for n, p in resized_file.products.items()
        }
    if is_bundle:
        bundle_metadata = json.loads((folder.parent / manifest.MANIFEST).read_text())["about"]
        manifest.write_local_manifest(out, {**bundle_metadata, "resized_to_rank": rank})
    return RankCutReport.of(truncated_products)


def _resize_file(path: Path, rank: int) -> _RankCutFile:
    tensor_header, metadata = read_header_and_metadata(path)
    if not tensor_header:
        raise ConfigError(f"{path} holds no tensors")
    scales = LayerScales(path, read_peft_metadata(metadata))
    resized_tensors: dict[str, Tensor] = {}
    truncated_products: dict[str, CutProduct] = {}
    try:
        stored_tensors = open_tensors(path)
        for layer, keys_by_role in group_keys(tensor_header).items():
            tensors_by_role = {
                role: check_tensor_is_finite(key, stored_tensors[key])
                for role, key in keys_by_role.items()
            }
            truncated_products[layer], layer_tensors = _resize_layer(
                layer, keys_by_role, tensors_by_role, rank, scales
            )
            resized_tensors |= layer_tensors
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    file_metadata = {k: v for k, v in metadata.items() if k not in (ADAPTER_METADATA_KEY, "format")}
    if "ss_network_dim" in file_metadata:
        file_metadata |= {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return _RankCutFile(resized_tensors, truncated_products, file_metadata)


def _resize_layer(
    layer: str,
    keys: Mapping[str, str],
    tensors_by_role: Mapping[str, Tensor],
    rank: int,
    scales: LayerScales,
) -> tuple[CutProduct, dict[str, Tensor]]:
    try:
        adapter_kind, layer_shape, original_rank = measure_factors(
            {r: tuple(t.shape) for r, t in tensors_by_role.items()}
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{shorten_key(layer)} has factors that do not go together: {error}"
        ) from error
    scale = scales.find(layer, original_rank, tensors_by_role.get("alpha"))
    factor_tensors = {r: t for r, t in tensors_by_role.items() if r not in (*_KEPT, "alpha")}
    layer_adapter = LayerAdapter(factor_tensors, scale)
    if layer_adapter.is_plain:
        truncated_product = cut_product(*layer_adapter.low_rank(), rank)
    else:
        truncated_product = cut_matrix(layer_adapter.compute_delta(torch.empty(layer_shape)), rank)
    return truncated_product, _name_tensors(
        layer, keys, tensors_by_role, truncated_product, is_lora=adapter_kind == "lora"
    )


def _name_tensors(
    layer: str,
    keys: Mapping[str, str],
    tensors_by_role: Mapping[str, Tensor],
    product: CutProduct,
    *,
    is_lora: bool,
) -> dict[str, Tensor]:
    """The layer's tensors under the keys that it had; new ones are kohya's."""
    if "embedding_down" in keys:
        raise ConfigError(f"{shorten_key(layer)} is an embedding; resize takes layers alone")
    dtype = next(iter(tensors_by_role.values())).dtype
    down_matrix, up_matrix = product.down, product.up
    if is_lora and tensors_by_role["down"].dim() == 4:
        kernel = tensors_by_role["mid"] if "mid" in tensors_by_role else tensors_by_role["down"]
        down_matrix = down_matrix.reshape(
            len(down_matrix), tensors_by_role["down"].shape[1], *kernel.shape[2:]
        )
        up_matrix = up_matrix[:, :, None, None]
    lora_tensor_keys = {
        role: keys.get(role, f"{layer}.lora_{role}.weight") for role in ("down", "up")
    }
    tensors_by_key = {
        lora_tensor_keys["down"]: down_matrix.to(dtype),
        lora_tensor_keys["up"]: up_matrix.to(dtype),
    }
    tensors_by_key |= {keys[role]: tensors_by_role[role] for role in _KEPT if role in keys}
    if not is_lora or "alpha" in keys:  # readers take no alpha for the rank
        tensors_by_key[keys.get("alpha", f"{layer}.alpha")] = torch.tensor(float(len(down_matrix)))
    return tensors_by_key


def _write_resized_file(path: Path, resized: _RankCutFile) -> None:
    tensor_sources = {name: TensorSource.of(t.contiguous()) for name, t in resized.tensors.items()}
    write_tensors(path, tensor_sources, {"format": "pt", **resized.metadata})
