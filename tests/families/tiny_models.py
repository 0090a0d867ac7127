"""A directory of each model family as its pipeline reads it, with tiny seeded weights.

The configurations are the published ones with every key, made small by `tiny_configs`. Weights come
from numpy's generator, so they are the same on every machine and with every release of the
libraries: what was recorded with them stays comparable.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from tests.families.tiny_configs import SHRINK, Config
from tests.families.tiny_tokenizers import (
    write_clip_vocabulary,
    write_gemma_tokenizer,
    write_mistral_tokenizer,
    write_qwen_tokenizer,
    write_t5_tokenizer,
)
from tests.published_models import CONFIGS, SD15, SDXL, published_text_name, rename_weights

FAMILY_CONFIGS = Path(__file__).parent / "published"
RESOLUTION = 64  # pixels; latents are 8 by 8


@dataclass(frozen=True)
class TinyModel:
    """A directory to be built. changes: file of the directory to the keys that differ there."""

    configs: Path
    shrink: Mapping[str, Callable[[Config], Config]]
    changes: Mapping[str, Config] = field(default_factory=dict)


_NO_CHECKER = {"safety_checker": [None, None], "feature_extractor": [None, None]}
_TURBO = {"scheduler/scheduler_config.json": {"shift": 3.0}}
_SCHNELL = {
    "transformer/config.json": {"guidance_embeds": False},
    "scheduler/scheduler_config.json": {"shift": 1.0, "use_dynamic_shifting": False},
}
_DISTILLED = {"model_index.json": {"is_distilled": True}}
SD3_TRANSFORMER = "transformer/config.json"
# As in 3.5 Medium, whose first layers have a second attention.
_SD35 = {"qk_norm": "rms_norm", "dual_attention_layers": [0]}
_NO_T5 = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
_SD3_WITHOUT_T5 = {k: v for k, v in SHRINK["sd3"].items() if k != "text_encoder_3"}
# As convert_sana_to_diffusers.py writes it for `--scheduler_type flow-euler`.
_SANA_FLOW_MATCH = {
    "scheduler/scheduler_config.json": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_flow_sigmas": False,
    },
    "model_index.json": {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
}  # fmt: skip
_SANA_15_2K = {
    "transformer/config.json": {
        "interpolation_scale": 1.0, "qk_norm": "rms_norm_across_heads", "sample_size": 64,
    }
}  # fmt: skip
_KREA2 = {"model_index.json": {"text_encoder_select_layers": [1, 2, 4]}}
_KREA2_TURBO = {"model_index.json": _KREA2["model_index.json"] | {"is_distilled": True}}
TINY_MODELS: dict[str, TinyModel] = {
    "sd15": TinyModel(CONFIGS / SD15, SHRINK["sd15"], {"model_index.json": _NO_CHECKER}),
    "sdxl": TinyModel(CONFIGS / SDXL, SHRINK["sdxl"]),
    "sd3": TinyModel(FAMILY_CONFIGS / "stable-diffusion-3-medium", SHRINK["sd3"]),
    "sd3-without-t5": TinyModel(
        FAMILY_CONFIGS / "stable-diffusion-3-medium", _SD3_WITHOUT_T5, {"model_index.json": _NO_T5}
    ),
    "sd35": TinyModel(
        FAMILY_CONFIGS / "stable-diffusion-3-medium", SHRINK["sd3"], {SD3_TRANSFORMER: _SD35}
    ),
    "flux1-dev": TinyModel(FAMILY_CONFIGS / "flux.1-dev", SHRINK["flux1"]),
    "flux1-schnell": TinyModel(FAMILY_CONFIGS / "flux.1-dev", SHRINK["flux1"], _SCHNELL),
    "chroma": TinyModel(FAMILY_CONFIGS / "chroma", SHRINK["chroma"]),
    "z-image": TinyModel(FAMILY_CONFIGS / "z-image", SHRINK["z-image"]),
    "z-image-turbo": TinyModel(FAMILY_CONFIGS / "z-image", SHRINK["z-image"], _TURBO),
    "qwen-image": TinyModel(FAMILY_CONFIGS / "qwen-image", SHRINK["qwen-image"]),
    "krea2": TinyModel(FAMILY_CONFIGS / "krea-2-raw", SHRINK["krea2"], _KREA2),
    "krea2-turbo": TinyModel(FAMILY_CONFIGS / "krea-2-raw", SHRINK["krea2"], _KREA2_TURBO),
    "sana": TinyModel(FAMILY_CONFIGS / "sana-1600m-1024px", SHRINK["sana"]),
    "sana-flow-match": TinyModel(
        FAMILY_CONFIGS / "sana-1600m-1024px", SHRINK["sana"], _SANA_FLOW_MATCH
    ),
    "sana-1.5-2k": TinyModel(FAMILY_CONFIGS / "sana-1600m-1024px", SHRINK["sana"], _SANA_15_2K),
    "flux2-klein": TinyModel(FAMILY_CONFIGS / "flux.2-klein-base-4b", SHRINK["flux2-klein"]),
    "flux2-klein-distilled": TinyModel(
        FAMILY_CONFIGS / "flux.2-klein-base-4b", SHRINK["flux2-klein"], _DISTILLED
    ),
    "flux2-dev": TinyModel(FAMILY_CONFIGS / "flux.2-dev", SHRINK["flux2-dev"]),
}
_BUILD: dict[str, Callable[[Config], Any]] = {
    "AutoencoderDC": AutoencoderDC.from_config,
    "AutoencoderKL": AutoencoderKL.from_config,
    "AutoencoderKLFlux2": AutoencoderKLFlux2.from_config,
    "AutoencoderKLQwenImage": AutoencoderKLQwenImage.from_config,
    "ChromaTransformer2DModel": ChromaTransformer2DModel.from_config,
    "CLIPTextModel": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "CLIPTextModelWithProjection": lambda config: CLIPTextModelWithProjection(
        CLIPTextConfig(**config)
    ),
    "Flux2Transformer2DModel": Flux2Transformer2DModel.from_config,
    "FluxTransformer2DModel": FluxTransformer2DModel.from_config,
    "Gemma2Model": lambda config: Gemma2Model(Gemma2Config(**config)),
    "Krea2Transformer2DModel": Krea2Transformer2DModel.from_config,
    "Mistral3ForConditionalGeneration": lambda config: Mistral3ForConditionalGeneration(
        Mistral3Config(**config)
    ),
    "Qwen2_5_VLForConditionalGeneration": lambda config: Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(**config)
    ),
    "QwenImageTransformer2DModel": QwenImageTransformer2DModel.from_config,
    "SanaTransformer2DModel": SanaTransformer2DModel.from_config,
    "SD3Transformer2DModel": SD3Transformer2DModel.from_config,
    "T5EncoderModel": lambda config: T5EncoderModel(T5Config(**config)),
    "Qwen3VLModel": lambda config: Qwen3VLModel(Qwen3VLConfig(**config)),
    "Qwen3ForCausalLM": lambda config: Qwen3ForCausalLM(Qwen3Config(**config)),
    "UNet2DConditionModel": UNet2DConditionModel.from_config,
    "ZImageTransformer2DModel": ZImageTransformer2DModel.from_config,
}


def build_tiny(
    name: str, folder: Path, variant: str | None = None, max_shard_size: str = "10GB"
) -> Path:
    """Write the model `name` of TINY_MODELS to `folder`, which is made.

    variant: of the weight files ("fp16"), in float16 if given
    """
    model = TINY_MODELS[name]
    shutil.copytree(model.configs, folder, ignore=shutil.ignore_patterns("safety_checker"))
    for file, keys in model.changes.items():
        change_json(folder / file, keys)
    index = json.loads((folder / "model_index.json").read_text())
    tokenizers = [part for part in index if part.startswith("tokenizer") and index[part][1]]
    vocab_sizes = {part: _write_tokenizer(folder / part, index[part][1]) for part in tokenizers}
    for seed, part in enumerate(sorted(model.shrink)):
        config_path = folder / part / "config.json"
        config = model.shrink[part](json.loads(config_path.read_text()))
        if part.startswith("text_encoder"):
            words = {"vocab_size": vocab_sizes[part.replace("text_encoder", "tokenizer")]}
            # Of a network that sees images too, inside; outside as well where it is published so.
            for keys in (config, config.get("text_config", {})):
                keys.update(words if "vocab_size" in keys else {})
        network = build_network(config)
        dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
        fill_weights(network, seed, getattr(torch, dtype))
        if variant:
            network = network.half()
        network.save_pretrained(folder / part, variant=variant, max_shard_size=max_shard_size)
        config_path.write_text(json.dumps(config, indent=2))
        if config.get("model_type") == "clip_text_model" and max_shard_size == "10GB":
            rename_weights(folder / part, published_text_name)
    return folder


def build_network(config: Config) -> Any:
    """A network of a part's config.json."""
    class_name = config.get("_class_name") or config["architectures"][0]
    return _BUILD[class_name](config)


def fill_weights(network: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> None:
    """Replace all weights: those of norms near one, biases near zero, all others by their inputs.

    dtype: whose values they are rounded to. transformers loads a model in the type that its
    configuration names, unless told otherwise: so it finds the same values either way.
    """
    generator = np.random.default_rng(seed)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers(remove_duplicate=True))
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point() or name.endswith("inv_freq"):
            continue
        noise = torch.from_numpy(generator.standard_normal(tuple(tensor.shape), np.float32))
        if name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif name.endswith("gamma"):  # a norm's, of networks of videos
            noise = 1 + 0.1 * noise
        elif tensor.ndim >= 2:
            noise = noise / np.sqrt(tensor[0].numel())
        elif name.endswith(("bias", "running_mean")):
            noise = 0.1 * noise
        else:
            noise = 1 + 0.1 * noise
        tensor.data.copy_(noise.to(dtype))


def _write_tokenizer(folder: Path, class_name: str) -> int:
    if class_name.startswith("Qwen2"):
        return write_qwen_tokenizer(folder)
    if class_name.startswith("T5"):
        return write_t5_tokenizer(folder)
    if class_name.startswith("Pixtral"):
        return write_mistral_tokenizer(folder)
    if class_name.startswith("Gemma"):
        return write_gemma_tokenizer(folder)
    return write_clip_vocabulary(folder)


def change_json(path: Path, keys: Config) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys, indent=2))
