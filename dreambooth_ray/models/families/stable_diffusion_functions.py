"""What Stable Diffusion 1.x and 2.x compute.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, k windows of a text, L tokens
of a window, D embedding width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from dreambooth_ray.models import clip_text
from dreambooth_ray.models.clip_unet_functions import ClipUNetFunctions
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import TextForward, TextForwards
from dreambooth_ray.models.network_functions import LastStateEncoder, NetworkFunction
from dreambooth_ray.models.prompt_windows import embed_windows
from dreambooth_ray.models.text_training import TextFunctions

_ENCODER = "text_encoder"
_PROCESSOR = "feature_extractor"


class TraceableStableDiffusionUNet(NetworkFunction):
    """A UNet as a function from tensors to one tensor."""

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor) -> Tensor:
        """x: (B, C, h, w), time: (B,), hidden: (B, k L, D); returns (B, C, h, w)."""
        return torch.as_tensor(self.network(x, time, hidden, return_dict=False)[0])


class StableDiffusionFunctions(ClipUNetFunctions):
    """One UNet that is told of the text encoder's states alone."""

    scheduler_class = "DDPMScheduler"

    def make_components(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, schedule: Any
    ) -> Components:
        """The parts as one model."""
        return Components(
            functions=self,
            denoiser=unet,
            vae=vae,
            text_encoders={_ENCODER: text_encoder},
            tokenizers={"tokenizer": tokenizer},
            schedule=schedule,
        )

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """An image processor is taken along where there is one; only safety checkers need it."""
        has_processor = (directory / _PROCESSOR / "preprocessor_config.json").is_file()
        return StableDiffusionPipeline(
            **self.pipeline_parts(parts, directory),
            safety_checker=None,
            feature_extractor=(
                CLIPImageProcessor.from_pretrained(directory, subfolder=_PROCESSOR)
                if has_processor
                else None
            ),
            requires_safety_checker=False,
        )

    def make_clip_skip_forward(
        self, encoder: Any, forward: TextForward, clip_skip: int
    ) -> clip_text.EmbedForward:
        """The last hidden state, or an earlier one under the final norm."""
        return clip_text.make_clip_skip_forward(encoder, forward, clip_skip)

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """As diffusers' pipeline has it, where that takes the prompt; see `clip_text`."""
        return Conditioning({"hidden": self.embed_text(parts, encoders, prompt, clip_skip)})

    def make_token_encoder(
        self, parts: Components, functions: TextFunctions
    ) -> Callable[[Conditioning], Conditioning]:
        """As `encode_prompt`, without clip_skip."""
        end_id, encode_clip = int(parts.tokenizer.eos_token_id), functions[_ENCODER]

        def embed_tokens(tokens: Conditioning) -> Conditioning:
            return Conditioning({"hidden": embed_windows(encode_clip, tokens["input_ids"], end_id)})

        return embed_tokens

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """To the last hidden state."""
        return LastStateEncoder(encoder)

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, timesteps and `hidden`."""
        return TraceableStableDiffusionUNet(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of one window."""
        config = parts.text_encoder.config
        hidden_shape = batch, config.max_position_embeddings, config.hidden_size
        return Conditioning({"hidden": torch.empty(hidden_shape)})

    def encode_dummy_tokens(
        self, parts: Components, functions: TextFunctions, conditioning: Conditioning
    ) -> Conditioning:
        """Of one window of token ids."""
        token_ids = torch.zeros(conditioning["hidden"].shape[:2], dtype=torch.int64)
        return Conditioning({"hidden": functions[_ENCODER](token_ids)})
