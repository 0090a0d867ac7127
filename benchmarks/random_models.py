"""Models of published sizes with random weights: the one table of these sizes."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.families.stable_diffusion import FAMILY
from dreambooth_ray.models.families.stable_diffusion_functions import StableDiffusionFunctions
from dreambooth_ray.models.model_directory import model_directory


@dataclass(frozen=True)
class ModelSize:
    """divisor: what all numbers of channels of Stable Diffusion 1.5 are divided by."""

    name: str
    divisor: int
    side_px: int


SD15 = ModelSize("Stable Diffusion 1.5", 1, 512)
TINY = ModelSize("Stable Diffusion 1.5, an eighth of its channels", 8, 64)


def make_random_components(size: ModelSize, device: torch.device) -> Components:
    """The parts of a size, float32; the toy's tokenizer, padded to 77, stands for CLIP's."""
    torch.manual_seed(0)
    text_hidden_size, num_norm_groups = 768 // size.divisor, 32 // size.divisor
    shared_model_settings: Any = {"layers_per_block": 2, "norm_num_groups": num_norm_groups}
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=size.side_px // 8, cross_attention_dim=text_hidden_size,
            attention_head_dim=8,
            block_out_channels=tuple(c // size.divisor for c in (320, 640, 1280, 1280)),
            **shared_model_settings,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=tuple(c // size.divisor for c in (128, 256, 512, 512)),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, sample_size=size.side_px,
            **shared_model_settings,
        )  # fmt: skip
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=text_hidden_size,
                intermediate_size=4 * text_hidden_size,
                num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
                projection_dim=text_hidden_size,
            )
        )  # fmt: skip
    return StableDiffusionFunctions(FAMILY).make_components(
        unet=unet,
        vae=vae.eval().requires_grad_(False),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(
            model_directory("toyworld") / "tokenizer", model_max_length=77
        ),
        schedule=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
    )
