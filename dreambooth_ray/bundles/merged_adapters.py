"""Several adapters into one: a weighted sum, as a bundle of its own or in a model's weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dreambooth_ray.adapters.adapter import Adapter, LayerKey, read_adapter
from dreambooth_ray.adapters.adapter_source import LocalAdapter
from dreambooth_ray.adapters.layer_adapter import LayerAdapter, add_deltas_to_weight, find_layer
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.adapters.low_rank import (
    CutProduct,
    cut_matrix,
    cut_product,
    join_products,
)
from dreambooth_ray.adapters.rank_cut_report import RankCutReport
from dreambooth_ray.bundles.adapter_bundle import write_adapter_bundle
from dreambooth_ray.bundles.new_path import explained_writing, new_path
from dreambooth_ray.bundles.read_back import refuse_overflow
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, build_pipeline, load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.sampling.adapter_folder_checks import refuse_words_and_schedule
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import MANIFEST

Uses = list[tuple[LayerAdapter, float]]


def merge_into_model(
    adapters: Sequence[LocalAdapter], directory: Path, out: Path, *, half: bool = False
) -> None:
    """Write a model directory with the sum of all adapters in its weights.

    directory: the base model's, or an adapter bundle, whose adapters are in it too; out: a new one
    half: float16 instead of float32
    raises: ConfigError, StorageError
    """
    components = load_components(directory)
    for part_and_layer, adapter_uses in _collect_layer_uses(adapters, directory).items():
        weight = _find_weight(components.networks, part_and_layer)
        with torch.no_grad():
            weight.copy_(add_deltas_to_weight(weight, adapter_uses))
    dtype = torch.float16 if half else torch.float32
    for network in components.networks.values():
        refuse_overflow(network.state_dict(), dtype)
        network.to(dtype)
    with new_path(out) as partial_out, explained_writing(out):
        build_pipeline(components, directory).save_pretrained(partial_out, safe_serialization=True)


def merge_into_adapter_bundle(
    adapters: Sequence[LocalAdapter],
    base: tuple[str, Path],
    out: Path,
    *,
    rank: int | None = None,
    half: bool = False,
) -> RankCutReport:
    """Write an adapter bundle that adds what all adapters add together; returns what rank costs.

    base: the model's URI and its directory; rank: None for the sum of all ranks, which loses
    nothing; LoHa, LoKr and DoRA need one, as their sum has the rank of the layer
    raises: ConfigError, StorageError
    """
    base_folder = base[1]
    uses_by_layer = _collect_layer_uses(adapters, base_folder)
    needs_base_weights = not all(
        a.is_plain for adapter_uses in uses_by_layer.values() for a, _ in adapter_uses
    )
    if needs_base_weights and rank is None:
        raise ConfigError(
            "--rank is not given, and not all adapters are plain LoRA: the sum with others has the "
            "rank of the layers; give --rank, or --into model, which loses nothing"
        )
    networks = _load_networks(base_folder, with_weights=needs_base_weights)
    products = {
        part_and_layer: _sum_uses(_find_weight(networks, part_and_layer), adapter_uses, rank)
        for part_and_layer, adapter_uses in uses_by_layer.items()
    }
    dtype = torch.float16 if half else torch.float32
    for part_and_layer, product in products.items():
        layer_name = ".".join(part_and_layer)
        refuse_overflow(
            {f"{layer_name} (down)": product.down, f"{layer_name} (up)": product.up}, dtype
        )
    with new_path(out) as partial_out, explained_writing(out):
        write_adapter_bundle(
            partial_out, products, networks, base, _describe_sources(adapters), dtype
        )
    return RankCutReport.of(
        {".".join(part_and_layer): product for part_and_layer, product in products.items()}
    )


def _collect_layer_uses(adapters: Sequence[LocalAdapter], directory: Path) -> dict[LayerKey, Uses]:
    layer_table = LayerTable.of_directory(directory)
    uses_by_layer: dict[LayerKey, Uses] = {}
    for local_adapter in adapters:
        if local_adapter.path.is_dir():
            refuse_words_and_schedule(local_adapter.path)
        for part_and_layer, layer_adapter in _read_local_adapter(
            local_adapter, layer_table
        ).layers.items():
            uses_by_layer.setdefault(part_and_layer, []).append(
                (layer_adapter, local_adapter.weight)
            )
    return uses_by_layer


def _read_local_adapter(local_adapter: LocalAdapter, layer_table: LayerTable) -> Adapter:
    try:
        return read_adapter(local_adapter.path, layer_table)
    except ConfigError as error:
        raise ConfigError(f"{local_adapter.path}: {error}") from error


def _load_networks(directory: Path, *, with_weights: bool) -> Mapping[str, nn.Module]:
    if with_weights:
        return load_components(directory).networks
    return _build_empty_components(directory).networks


def _build_empty_components(directory: Path) -> Components:
    with torch.device("meta"):
        return find_family(directory).load_functions().build_empty_components(directory)


def _find_weight(networks: Mapping[str, nn.Module], part_and_layer: LayerKey) -> Tensor:
    part, layer = part_and_layer
    module = find_layer(networks[part], layer)
    assert module is not None
    return module.get_parameter("weight").detach()


def _sum_uses(weight: Tensor, adapter_uses: Uses, rank: int | None) -> CutProduct:
    if all(adapter.is_plain for adapter, _ in adapter_uses):
        down, up = join_products(adapter_uses)
        return cut_product(down, up, rank or len(down))
    assert rank is not None
    delta = add_deltas_to_weight(weight, adapter_uses) - weight.float()
    return cut_matrix(delta.flatten(1), rank)


def _describe_sources(adapters: Sequence[LocalAdapter]) -> dict[str, object]:
    """Whose sum it is; its subject is the first bundle's."""
    bundle_metadata: dict[str, object] = {}
    for local_adapter in adapters:
        if local_adapter.path.name == paths.ADAPTER and not bundle_metadata:
            bundle_metadata.update(
                json.loads((local_adapter.path.parent / MANIFEST).read_text())["about"]
            )
    bundle_metadata["sources"] = [{"name": a.name, "weight": a.weight} for a in adapters]
    return bundle_metadata
