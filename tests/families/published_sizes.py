"""Checkpoints as published: configurations of their parts, and how many parameters these give."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.families.tiny_configs import Config
from tests.families.tiny_models import FAMILY_CONFIGS, build_network
from tests.published_models import CONFIGS, SD15, SDXL


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint. num_params: by part; changes: of the configurations in `configs`, by part

    said: what public text says of a part's size, where it is exact enough to be compared:
    ("GiB", number with two places, in bfloat16) or ("parameters", number)
    """

    repository: str
    configs: Path
    num_params: Mapping[str, int]
    changes: Mapping[str, Config] = field(default_factory=dict)
    said: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def part_config(self, part: str) -> Config:
        config: Config = json.loads((self.configs / part / "config.json").read_text())
        return config | self.changes.get(part, {})

    def write_configs(self, folder: Path) -> Path:
        """A directory of configurations, without a weight."""
        shutil.copytree(self.configs, folder)
        for part in self.num_params:
            (folder / part / "config.json").write_text(json.dumps(self.part_config(part)))
        return folder

    def build_on_meta(self, part: str) -> nn.Module:
        """The network in full size, without memory."""
        with torch.device("meta"):
            network: nn.Module = build_network(self.part_config(part))
        return network


_KLEIN = FAMILY_CONFIGS / "flux.2-klein-base-4b"
_QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
_KLEIN_9B = {
    "transformer": {
        "joint_attention_dim": 12288,
        "num_attention_heads": 32,
        "num_layers": 8,
        "num_single_layers": 24,
    },
    "text_encoder": _QWEN3_8B,
}
_Z_IMAGE_PARAMS = {
    "transformer": 6_154_908_736,
    "text_encoder": 4_022_468_096,
    "vae": 83_819_683,
}
# diffusers' documentation (modular_diffusers/components_manager.md) prints these of Z-Image-Turbo.
_Z_IMAGE_SAID = {
    "transformer": ("GiB", 11.46),
    "text_encoder": ("GiB", 7.49),
    "vae": ("GiB", 0.16),
}
_KLEIN_4B_PARAMS = {
    "transformer": 3_875_544_576,
    "text_encoder": 4_022_468_096,
    "vae": 84_046_115,
}
# A public loader of FLUX.2's autoencoder counts its file's parameters.
_KLEIN_SAID = {"vae": ("parameters", 84_046_115)}
_FLUX1_PARAMS = {
    "transformer": 11_901_408_320,
    "text_encoder": 123_060_480,
    "text_encoder_2": 4_762_310_656,
    "vae": 83_819_683,
}
# Its published file names no class.
_FLUX1_T5 = {"text_encoder_2": {"architectures": ["T5EncoderModel"]}}
# The files of 3.5 need consent: these are what diffusers' convert_sd3_to_diffusers.py writes.
_SD35_MEDIUM: Config = {
    "dual_attention_layers": list(range(13)),
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
}
_SD35_LARGE: Config = {
    "caption_projection_dim": 2432,
    "num_attention_heads": 38,
    "num_layers": 38,
    "qk_norm": "rms_norm",
}
_SD3_TEXT = {
    "text_encoder": 123_650_304,
    "text_encoder_2": 694_659_840,
    "text_encoder_3": 4_762_310_656,
    "vae": 83_819_683,
}
# Public catalogs of downloads count the transformer's parameters, and those of Qwen2.5-VL-7B.
_QWEN_SAID = {
    "transformer": ("parameters", 20_430_401_088),
    "text_encoder": ("parameters", 8_292_166_656),
}
_SANA = FAMILY_CONFIGS / "sana-1600m-1024px"
_SANA_PARAMS = {
    "transformer": 1_604_462_752,
    "text_encoder": 2_614_341_888,
    "vae": 312_250_275,
}
# By diffusers' convert_sana_to_diffusers.py.
_SANA_600M: Config = {
    "cross_attention_dim": 1152,
    "cross_attention_head_dim": 72,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "num_layers": 28,
}
# Public catalogs count Gemma 2 2B's parameters.
_SANA_SAID = {"text_encoder": ("parameters", 2_614_341_888)}
PUBLISHED_MODELS = {
    "sd15": PublishedModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        CONFIGS / SD15,
        {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    ),
    "sdxl": PublishedModel(
        "stabilityai/stable-diffusion-xl-base-1.0",
        CONFIGS / SDXL,
        {
            "unet": 2_567_463_684,
            "vae": 83_653_863,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
    ),
    "sd3-medium": PublishedModel(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        FAMILY_CONFIGS / "stable-diffusion-3-medium",
        {"transformer": 2_028_328_000, **_SD3_TEXT},
    ),
    "sd3.5-medium": PublishedModel(
        "stabilityai/stable-diffusion-3.5-medium",
        FAMILY_CONFIGS / "stable-diffusion-3-medium",
        {"transformer": 2_243_171_520},
        {"transformer": _SD35_MEDIUM},
    ),
    "sd3.5-large": PublishedModel(
        "stabilityai/stable-diffusion-3.5-large",
        FAMILY_CONFIGS / "stable-diffusion-3-medium",
        {"transformer": 8_056_627_520},
        {"transformer": _SD35_LARGE},
    ),
    "z-image": PublishedModel(
        "Tongyi-MAI/Z-Image", FAMILY_CONFIGS / "z-image", _Z_IMAGE_PARAMS, said=_Z_IMAGE_SAID
    ),
    "z-image-turbo": PublishedModel(
        "Tongyi-MAI/Z-Image-Turbo", FAMILY_CONFIGS / "z-image", _Z_IMAGE_PARAMS, said=_Z_IMAGE_SAID
    ),
    "chroma": PublishedModel(
        "lodestones/Chroma1-HD",
        FAMILY_CONFIGS / "chroma",
        {"transformer": 8_899_983_424, "text_encoder": 4_762_310_656, "vae": 83_819_683},
    ),
    "qwen-image": PublishedModel(
        "Qwen/Qwen-Image",
        FAMILY_CONFIGS / "qwen-image",
        {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531},
        said=_QWEN_SAID,
    ),
    "krea2": PublishedModel(
        "krea/Krea-2-Raw",
        FAMILY_CONFIGS / "krea-2-raw",
        {"transformer": 12_820_073_036, "text_encoder": 4_437_815_808, "vae": 126_892_531},
        # Public catalogs count Krea 2 Turbo's parameters, and Qwen3-VL-4B's.
        said={
            "transformer": ("parameters", 12_820_073_036),
            "text_encoder": ("parameters", 4_437_815_808),
        },
    ),
    "sana-1600m": PublishedModel(
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers", _SANA, _SANA_PARAMS, said=_SANA_SAID
    ),
    "sana-600m": PublishedModel(
        "Efficient-Large-Model/Sana_600M_1024px_diffusers",
        _SANA,
        _SANA_PARAMS | {"transformer": 591_747_872},
        {"transformer": _SANA_600M},
        _SANA_SAID,
    ),
    "sana-1.5-4.8b": PublishedModel(
        "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
        _SANA,
        _SANA_PARAMS | {"transformer": 4_721_825_952},
        {"transformer": {"num_layers": 60, "qk_norm": "rms_norm_across_heads"}},
        _SANA_SAID,
    ),
    "flux2-klein-4b": PublishedModel(
        "black-forest-labs/FLUX.2-klein-base-4B", _KLEIN, _KLEIN_4B_PARAMS, said=_KLEIN_SAID
    ),
    "flux2-klein-9b": PublishedModel(
        "black-forest-labs/FLUX.2-klein-base-9B",
        _KLEIN,
        {"transformer": 9_078_581_248, "text_encoder": 8_190_735_360, "vae": 84_046_115},
        _KLEIN_9B,
        _KLEIN_SAID,
    ),
    "flux2-dev": PublishedModel(
        "black-forest-labs/FLUX.2-dev",
        FAMILY_CONFIGS / "flux.2-dev",
        {"transformer": 32_223_281_152, "text_encoder": 24_011_361_280, "vae": 84_046_115},
        # Its file has a head of its own.
        {"text_encoder": {"tie_word_embeddings": False}},
        # Public text counts the transformer's parameters, and Mistral Small 3.2's.
        _KLEIN_SAID
        | {
            "transformer": ("parameters", 32_223_281_152),
            "text_encoder": ("parameters", 24_011_361_280),
        },
    ),
    "flux1-dev": PublishedModel(
        "black-forest-labs/FLUX.1-dev", FAMILY_CONFIGS / "flux.1-dev", _FLUX1_PARAMS, _FLUX1_T5
    ),
    "flux1-schnell": PublishedModel(
        "black-forest-labs/FLUX.1-schnell",
        FAMILY_CONFIGS / "flux.1-dev",
        _FLUX1_PARAMS | {"transformer": 11_891_178_560},
        {"transformer": {"guidance_embeds": False}, **_FLUX1_T5},
    ),
}
