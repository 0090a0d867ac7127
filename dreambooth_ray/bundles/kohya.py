"""Adapters under the names of kohya's sd-scripts, which A1111 and ComfyUI read.

Legend: r rank of an adapter, O and I a layer's output and input.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.kohya_names import KohyaLayer, KohyaNames


class _Factors(NamedTuple):
    """An adapter's (r, I) and (O, r), or a convolution's with two axes more."""

    down: Tensor
    up: Tensor


def find_kohya_layers(
    names: KohyaNames, directory: Path, part: str, layers: Iterable[str]
) -> dict[str, KohyaLayer]:
    """By layer; raises ConfigError naming one that readers of this format would pass over."""
    kohya_layers = {layer: names.find(directory, part, layer) for layer in layers}
    if unread_layers := sorted(
        layer for layer, kohya_layer in kohya_layers.items() if kohya_layer is None
    ):
        raise ConfigError(
            f"--format=kohya: its readers know no adapter of {unread_layers[0]} "
            f"({len(unread_layers)} of {part}'s layers): take --format=lora, or another that has "
            "the adapters fused in"
        )
    return {
        layer: kohya_layer for layer, kohya_layer in kohya_layers.items() if kohya_layer is not None
    }


def rename_weights(
    names: KohyaNames,
    directory: Path,
    part: str,
    weights: Mapping[str, Tensor],
    alpha: float,
    rank: int | None = None,
) -> dict[str, Tensor]:
    """peft's weights of one part, layer.lora_A.weight, as lora_unet_layer.lora_down.weight.

    directory: the base model's; rank: that alpha is for, None for that of each layer
    Each layer gets an alpha: readers scale by alpha / rank.
    raises: ConfigError for layers that readers do not know
    """
    layers = {n.removesuffix(".weight").rpartition(".")[0] for n in weights}
    factors_by_layer: dict[str, dict[int, _Factors]] = defaultdict(dict)
    part_sizes_by_layer: dict[str, tuple[int, ...]] = {}
    for layer, kohya_layer in sorted(find_kohya_layers(names, directory, part, layers).items()):
        down, up = (weights[f"{layer}.lora_{x}.weight"] for x in ("A", "B"))
        factors_by_layer[kohya_layer.name][kohya_layer.part] = _Factors(down, up)
        part_sizes_by_layer[kohya_layer.name] = kohya_layer.shares
    renamed = {}
    for file_layer_name, factors_by_part in factors_by_layer.items():
        factors = _stack_part_factors(factors_by_part, part_sizes_by_layer[file_layer_name])
        num_parts = len(part_sizes_by_layer[file_layer_name])
        # A layer of another rank has its scale in its weights: diffusers mistakes other alphas.
        scale_factor = len(factors.down) / (rank * num_parts) if rank else 1.0
        renamed[f"{file_layer_name}.lora_down.weight"] = factors.down
        renamed[f"{file_layer_name}.lora_up.weight"] = (
            factors.up * scale_factor if scale_factor != 1 else factors.up
        )
        renamed[f"{file_layer_name}.alpha"] = torch.tensor(alpha * num_parts)
    return renamed


def _stack_part_factors(parts: Mapping[int, _Factors], shares: tuple[int, ...]) -> _Factors:
    """One adapter of as many times the rank as parts, which does to each what its own does."""
    if len(shares) == 1:
        return parts[0]
    part_factors = [
        parts.get(k) or _make_zero_factors(parts, shares, k) for k in range(len(shares))
    ]
    return _Factors(
        torch.cat([factors.down for factors in part_factors]),
        torch.block_diag(*(factors.up for factors in part_factors)),  # type: ignore[no-untyped-call]
    )


def _make_zero_factors(
    parts: Mapping[int, _Factors], shares: tuple[int, ...], index: int
) -> _Factors:
    """An adapter of the part `index` that does nothing, as wide as the others'."""
    (trained_part_index, factors), *_ = parts.items()
    num_output_rows = len(factors.up) // shares[trained_part_index] * shares[index]
    return _Factors(
        torch.zeros_like(factors.down), factors.up.new_zeros(num_output_rows, factors.up.shape[1])
    )


def build_kohya_metadata(
    settings: Mapping[str, Any], about: Mapping[str, str], title: str
) -> dict[str, str]:
    """The metadata that sd-scripts write, as far as we have it.

    settings: peft's; about: the base model's
    """
    rank, alpha = str(settings["r"]), str(settings["lora_alpha"])
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha}),
        "ss_output_name": title,
        **about,
    }
