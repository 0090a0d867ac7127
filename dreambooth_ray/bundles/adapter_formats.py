"""Adapters of a run as one file, under the names that diffusers or kohya's readers look for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth_ray.adapters.peft_settings import PeftSettings
from dreambooth_ray.bundles import kohya, lycoris, read_back
from dreambooth_ray.bundles.model_spec import build_model_spec
from dreambooth_ray.bundles.prepared_export import PreparedExport, write_single_weights_file
from dreambooth_ray.bundles.read_back import LayerDelta, multiply_factors
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.kohya_names import KohyaNames
from dreambooth_ray.models.model_directory import adapted_base, base_directory
from dreambooth_ray.models.network_loading import explained_loading
from dreambooth_ray.models.peft_files import ADAPTER_METADATA_KEY, PREFIX, SETTINGS, WEIGHTS
from dreambooth_ray.storage import paths

_UP = ".lora_B.weight"
_TITLES = {"loha": "LoHa", "lokr": "LoKr"}


@dataclass(frozen=True)
class AdapterWeights:
    """One part's adapters as peft wrote them; weights are named layer.lora_A.weight."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """lora, loha or lokr."""
        return str(self.settings["peft_type"]).lower()

    @property
    def has_one_scale(self) -> bool:
        """Whether all layers are of one rank and one scale, which is alpha / rank."""
        setting_names = ("rank_pattern", "alpha_pattern", "use_rslora")
        return not any(self.settings.get(name) for name in setting_names)

    def find_scale(self, layer: str) -> float:
        """Factor of the product of a layer's two matrices."""
        return PeftSettings.parse(self.settings).find_scale(layer)

    def compute_deltas(self) -> dict[str, LayerDelta]:
        """What was learnt, by layer without the level text_model."""
        return {
            layer.removeprefix("text_model."): LayerDelta(
                multiply_factors(
                    weight, self.weights[f"{layer}.lora_B.weight"], self.find_scale(layer)
                ),
                self.weights.get(f"{layer}.lora_magnitude_vector"),
            )
            for name, weight in self.weights.items()
            if (layer := name.removesuffix(".lora_A.weight")) != name
        }


def build_lora(directory: Path, dtype: torch.dtype) -> PreparedExport:
    """peft's own names under the part's, the one form in which diffusers reads every layer.

    raises: ConfigError
    """
    exported_weights: dict[str, Tensor] = {}
    peft_metadata: dict[str, Any] = {}
    adapters = _load_adapters(directory, "lora")
    _refuse_other_kinds(adapters, "lora")
    for part, adapter in adapters.items():
        # transformers 5 has dropped this level of CLIP's; readers take the names with it.
        part_prefix = f"{part}.text_model." if part.startswith("text_encoder") else f"{part}."
        for weight_name, weight in adapter.weights.items():
            # Readers that know no alpha take it to be the rank: the scale goes into the weights.
            layer, _, name_end = weight_name.rpartition(".lora_B.weight")
            scaled_weight = weight * adapter.find_scale(layer) if layer and not name_end else weight
            # transformers passes over magnitudes that are named as peft names them, without an end.
            name_end = ".weight" if weight_name.endswith("lora_magnitude_vector") else ""
            exported_weights[part_prefix + weight_name.removeprefix("text_model.") + name_end] = (
                scaled_weight
            )
        peft_settings = {
            **adapter.settings,
            "lora_alpha": adapter.settings["r"],
            "alpha_pattern": adapter.settings["rank_pattern"],
            "use_rslora": False,
        }
        peft_metadata |= {f"{part}.{k}": v for k, v in peft_settings.items()}
    modelspec = build_model_spec(directory, adapter=True)
    metadata = {**modelspec, ADAPTER_METADATA_KEY: json.dumps(peft_metadata, sort_keys=True)}
    return _prepare_adapter_export(exported_weights, adapters, directory, metadata, dtype, "lora")


def build_kohya(directory: Path, dtype: torch.dtype) -> PreparedExport:
    """The names of kohya's sd-scripts; LoHa and LoKr under LyCORIS's. raises: ConfigError"""
    base_folder = base_directory(directory)
    kohya_names = find_family(base_folder).kohya_names
    assert kohya_names is not None
    weights: dict[str, Tensor] = {}
    adapters = _load_adapters(directory, "kohya")
    if any(adapter.kind != "lora" for adapter in adapters.values()):
        return _build_lycoris(directory, kohya_names, adapters, dtype)
    for part, adapter in adapters.items():
        if adapter.settings["use_dora"]:
            raise ConfigError(
                "--format=kohya: readers of that format differ on DoRA; take --format=lora, or "
                "another that has the adapters fused in"
            )
        rank = int(adapter.settings["r"])
        if adapter.has_one_scale:
            alpha = float(adapter.settings["lora_alpha"])
            weights |= kohya.rename_weights(
                kohya_names, base_folder, part, adapter.weights, alpha, rank
            )
            continue
        # One alpha for all: each layer's own scale goes into its weights.
        scaled_weights = {
            name: weight * adapter.find_scale(name.removesuffix(_UP))
            if name.endswith(_UP)
            else weight
            for name, weight in adapter.weights.items()
        }
        weights |= kohya.rename_weights(
            kohya_names, base_folder, part, scaled_weights, float(rank), rank
        )
    peft_settings = next(iter(adapters.values())).settings
    modelspec = build_model_spec(directory, adapter=True)
    kohya_metadata = kohya.build_kohya_metadata(
        peft_settings, kohya_names.read_metadata(base_folder), modelspec["modelspec.title"]
    )
    metadata = {**modelspec, **kohya_metadata}
    return _prepare_adapter_export(weights, adapters, directory, metadata, dtype, "kohya")


def _prepare_adapter_export(
    weights: Mapping[str, Tensor],
    adapters: Mapping[str, AdapterWeights],
    directory: Path,
    metadata: dict[str, str],
    dtype: torch.dtype,
    kind: str,
) -> PreparedExport:
    learned_deltas = {part: adapter.compute_deltas() for part, adapter in adapters.items()}
    return PreparedExport(
        partial(write_single_weights_file, weights, dtype, metadata),
        lambda out: read_back.check_exported_adapters(out, directory, learned_deltas, dtype, kind),
    )


def _load_adapters(directory: Path, kind: str) -> dict[str, AdapterWeights]:
    """Adapters of an adapter bundle by part; raises ConfigError for any other directory."""
    if adapted_base(directory) is None:
        raise ConfigError(
            f"--format={kind}: {directory} has no adapters; it takes a run with "
            "train.method=lora, others can be exported as diffusers or single-file"
        )
    for learned_words in tokens.read_learned_words(directory / paths.ADAPTER).values():
        refuse_learned_words(kind, list(learned_words))
    adapters = {}
    for part in (part.name for part in find_family(base_directory(directory)).networks):
        if (part_folder := directory / paths.ADAPTER / part).is_dir():
            with explained_loading(part_folder):
                peft_settings = json.loads((part_folder / SETTINGS).read_text())
                stored_weights = load_file(part_folder / WEIGHTS)
            weights = {k.removeprefix(PREFIX): v for k, v in stored_weights.items()}
            adapters[part] = AdapterWeights(peft_settings, weights)
    return adapters


def refuse_learned_words(kind: str, words: list[str]) -> None:
    """raises: ConfigError, always: `kind` has no place for learned words"""
    raise ConfigError(
        f"--format={kind}: the file would not hold the learned word {' '.join(words)}; take "
        "--format=diffusers, which has it in its tokenizer and text encoder"
    )


def _build_lycoris(
    directory: Path, names: KohyaNames, adapters: Mapping[str, AdapterWeights], dtype: torch.dtype
) -> PreparedExport:
    """LoHa or LoKr under LyCORIS's names, which ComfyUI and A1111 read."""
    base_folder = base_directory(directory)
    weights: dict[str, Tensor] = {}
    for part, adapter in adapters.items():
        weights |= lycoris.rename_factors(
            names, base_folder, part, adapter.weights, adapter.find_scale
        )
    first_part_adapter = next(iter(adapters.values()))
    modelspec = build_model_spec(directory, adapter=True)
    metadata = modelspec | lycoris.build_lycoris_metadata(
        first_part_adapter.kind,
        first_part_adapter.settings,
        names.read_metadata(base_folder),
        modelspec["modelspec.title"],
    )
    return PreparedExport(
        partial(write_single_weights_file, weights, dtype, metadata),
        lambda out: lycoris.check_lycoris_file(out, directory / paths.ADAPTER, base_folder, dtype),
    )


def _refuse_other_kinds(adapters: Mapping[str, AdapterWeights], kind: str) -> None:
    for adapter in adapters.values():
        if adapter.kind != "lora":
            raise ConfigError(
                f"--format={kind}: diffusers reads no {_TITLES[adapter.kind]}; take "
                "--format=kohya, which ComfyUI and A1111 read, or --format=diffusers, which has "
                "the adapters fused in"
            )
