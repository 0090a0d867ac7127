"""LoHa and LoKr in one file, as LyCORIS names and scales them: what ComfyUI and A1111 read.

Legend: r rank, O and I a layer's output and flattened input.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_ray.adapters.adapter import read_adapter
from dreambooth_ray.adapters.binding import measure_factors
from dreambooth_ray.adapters.layer_adapter import compute_product
from dreambooth_ray.adapters.layer_table import LayerTable
from dreambooth_ray.bundles import kohya
from dreambooth_ray.bundles.read_back import LayerDelta, check_delta
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.kohya_names import KohyaNames


def rename_factors(
    names: KohyaNames,
    directory: Path,
    part: str,
    weights: Mapping[str, Tensor],
    find_scale: Callable[[str], float],
) -> dict[str, Tensor]:
    """peft's weights of one part, layer.hada_w1_a, as lora_unet_layer.hada_w1_a.

    directory: the base model's; find_scale: of a layer's product
    raises: ConfigError for layers that readers do not know, or have as a part of another
    """
    factors_by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for weight_name, weight in weights.items():
        layer, _, role = weight_name.rpartition(".")
        factors_by_layer[layer][role] = weight
    renamed: dict[str, Tensor] = {}
    for layer, kohya_layer in sorted(
        kohya.find_kohya_layers(names, directory, part, factors_by_layer).items()
    ):
        if len(kohya_layer.shares) > 1:
            raise ConfigError(
                f"--format=kohya: its readers have {layer} as a part of {kohya_layer.name}, which "
                "no LoHa or LoKr can be put together for; take --format=diffusers, which has the "
                "adapters fused in"
            )
        layer_factors, scale = dict(factors_by_layer[layer]), find_scale(layer)
        _, _, rank = measure_factors({role: tuple(w.shape) for role, w in layer_factors.items()})
        if rank is None:
            # Readers scale by alpha / rank, and not at all where both factors are whole.
            layer_factors["lokr_w1"] = layer_factors["lokr_w1"] * scale
        else:
            layer_factors["alpha"] = torch.tensor(scale * rank)
        renamed |= {f"{kohya_layer.name}.{role}": weight for role, weight in layer_factors.items()}
    return renamed


def build_lycoris_metadata(
    algorithm: str, settings: Mapping[str, Any], about: Mapping[str, str], title: str
) -> dict[str, str]:
    """What LyCORIS writes, as far as we have it. settings: peft's; about: the base model's"""
    rank, alpha = str(settings["r"]), str(settings["alpha"])
    network_arguments = {"algo": algorithm, "conv_dim": rank, "conv_alpha": alpha}
    if settings.get("decompose_factor"):
        network_arguments["factor"] = str(settings["decompose_factor"])
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(network_arguments),
        "ss_output_name": title,
        **about,
    }


def check_lycoris_file(path: Path, adapter: Path, base: Path, dtype: torch.dtype) -> None:
    """Read a file by the rules of its readers, and compare every layer with what was learnt.

    adapter: peft's folders, by part; base: the model's directory; dtype: of the file
    raises: ConfigError naming a layer that is not read, or not as it was learnt
    """
    layer_table = LayerTable.of_directory(base)
    written_layers = read_adapter(path, layer_table).layers
    learned_layers = read_adapter(adapter, layer_table).layers
    if unread_layer_keys := sorted(written_layers.keys() ^ learned_layers.keys()):
        raise ConfigError(
            f"--format=kohya: {'.'.join(unread_layer_keys[0])} is not read back; take "
            "--format=diffusers"
        )
    for part_and_layer, learned_layer in learned_layers.items():
        deltas = (
            LayerDelta(compute_product(adapter_layer.factors) * adapter_layer.scale, None)
            for adapter_layer in (written_layers[part_and_layer], learned_layer)
        )
        check_delta(".".join(part_and_layer), *deltas, dtype=dtype, kind="kohya")
