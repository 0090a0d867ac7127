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
from dreambooth_ray.bundles.export_file import Export, save_weights
from dreambooth_ray.bundles.model_spec import build_model_spec
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
        names = ("rank_pattern", "alpha_pattern", "use_rslora")
        return not any(self.settings.get(name) for name in names)

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


def build_lora(directory: Path, dtype: torch.dtype) -> Export:
    """peft's own names under the part's, the one form in which diffusers reads every layer.

    raises: ConfigError
    """
    layers: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    adapters = _load_adapters(directory, "lora")
    _refuse_other_kinds(adapters, "lora")
    for part, adapter in adapters.items():
        # transformers 5 has dropped this level of CLIP's; readers take the names with it.
        prefix = f"{part}.text_model." if part.startswith("text_encoder") else f"{part}."
        for name, weight in adapter.weights.items():
            # Readers that know no alpha take it to be the rank: the scale goes into the weights.
            layer, _, end = name.rpartition(".lora_B.weight")
            scaled = weight * adapter.find_scale(layer) if layer and not end else weight
            # transformers passes over magnitudes that are named as peft names them, without an end.
            end = ".weight" if name.endswith("lora_magnitude_vector") else ""
            layers[prefix + name.removeprefix("text_model.") + end] = scaled
        settings = {
            **adapter.settings,
            "lora_alpha": adapter.settings["r"],
            "alpha_pattern": adapter.settings["rank_pattern"],
            "use_rslora": False,
        }
        about |= {f"{part}.{k}": v for k, v in settings.items()}
    modelspec = build_model_spec(directory, adapter=True)
    metadata = {**modelspec, ADAPTER_METADATA_KEY: json.dumps(about, sort_keys=True)}
    return _export_adapters(layers, adapters, directory, metadata, dtype, "lora")


def build_kohya(directory: Path, dtype: torch.dtype) -> Export:
    """The names of kohya's sd-scripts; LoHa and LoKr under LyCORIS's. raises: ConfigError"""
    base = base_directory(directory)
    names = find_family(base).kohya_names
    assert names is not None
    weights: dict[str, Tensor] = {}
    adapters = _load_adapters(directory, "kohya")
    if any(adapter.kind != "lora" for adapter in adapters.values()):
        return _build_lycoris(directory, names, adapters, dtype)
    for part, adapter in adapters.items():
        if adapter.settings["use_dora"]:
            raise ConfigError(
                "--format=kohya: readers of that format differ on DoRA; take --format=lora, or "
                "another that has the adapters fused in"
            )
        rank = int(adapter.settings["r"])
        if adapter.has_one_scale:
            alpha = float(adapter.settings["lora_alpha"])
            weights |= kohya.rename_weights(names, base, part, adapter.weights, alpha, rank)
            continue
        # One alpha for all: each layer's own scale goes into its weights.
        scaled = {
            name: w * adapter.find_scale(layer) if (layer := name.removesuffix(_UP)) != name else w
            for name, w in adapter.weights.items()
        }
        weights |= kohya.rename_weights(names, base, part, scaled, float(rank), rank)
    settings = next(iter(adapters.values())).settings
    modelspec = build_model_spec(directory, adapter=True)
    kohya_metadata = kohya.build_metadata(
        settings, names.read_metadata(base), modelspec["modelspec.title"]
    )
    metadata = {**modelspec, **kohya_metadata}
    return _export_adapters(weights, adapters, directory, metadata, dtype, "kohya")


def _export_adapters(
    weights: Mapping[str, Tensor],
    adapters: Mapping[str, AdapterWeights],
    directory: Path,
    metadata: dict[str, str],
    dtype: torch.dtype,
    kind: str,
) -> Export:
    learned = {part: adapter.compute_deltas() for part, adapter in adapters.items()}
    return Export(
        partial(save_weights, weights, dtype, metadata),
        lambda out: read_back.check_adapters(out, directory, learned, dtype, kind),
    )


def _load_adapters(directory: Path, kind: str) -> dict[str, AdapterWeights]:
    """Adapters of an adapter bundle by part; raises ConfigError for any other directory."""
    if adapted_base(directory) is None:
        raise ConfigError(
            f"--format={kind}: {directory} has no adapters; it takes a run with "
            "train.method=lora, others can be exported as diffusers or single-file"
        )
    for words in tokens.load_words(directory / paths.ADAPTER).values():
        refuse_words(kind, list(words))
    adapters = {}
    for part in (part.name for part in find_family(base_directory(directory)).networks):
        if (folder := directory / paths.ADAPTER / part).is_dir():
            with explained_loading(folder):
                settings = json.loads((folder / SETTINGS).read_text())
                stored_weights = load_file(folder / WEIGHTS)
            weights = {k.removeprefix(PREFIX): v for k, v in stored_weights.items()}
            adapters[part] = AdapterWeights(settings, weights)
    return adapters


def refuse_words(kind: str, words: list[str]) -> None:
    """raises: ConfigError, always: `kind` has no place for learned words"""
    raise ConfigError(
        f"--format={kind}: the file would not hold the learned word {' '.join(words)}; take "
        "--format=diffusers, which has it in its tokenizer and text encoder"
    )


def _build_lycoris(
    directory: Path, names: KohyaNames, adapters: Mapping[str, AdapterWeights], dtype: torch.dtype
) -> Export:
    """LoHa or LoKr under LyCORIS's names, which ComfyUI and A1111 read."""
    base = base_directory(directory)
    weights: dict[str, Tensor] = {}
    for part, adapter in adapters.items():
        weights |= lycoris.rename_factors(names, base, part, adapter.weights, adapter.find_scale)
    first = next(iter(adapters.values()))
    modelspec = build_model_spec(directory, adapter=True)
    metadata = modelspec | lycoris.build_metadata(
        first.kind, first.settings, names.read_metadata(base), modelspec["modelspec.title"]
    )
    return Export(
        partial(save_weights, weights, dtype, metadata),
        lambda out: lycoris.check_file(out, directory / paths.ADAPTER, base, dtype),
    )


def _refuse_other_kinds(adapters: Mapping[str, AdapterWeights], kind: str) -> None:
    for adapter in adapters.values():
        if adapter.kind != "lora":
            raise ConfigError(
                f"--format={kind}: diffusers reads no {_TITLES[adapter.kind]}; take "
                "--format=kohya, which ComfyUI and A1111 read, or --format=diffusers, which has "
                "the adapters fused in"
            )
