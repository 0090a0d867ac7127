"""What families with a UNet and CLIP's text encoders have in common.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, k windows of a text, L tokens
of a window, D embedding width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_ray.models import clip_text
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.family import TextEncoderPart
from dreambooth_ray.models.model_functions import (
    EncodePrompt,
    ModelFunctions,
    TextForward,
    TextForwards,
)
from dreambooth_ray.models.part_configs import SAMPLE_SIZE
from dreambooth_ray.models.prompt_windows import limit_window_lengths, tokenize_windows
from dreambooth_ray.models.text_training import TextTraining
from dreambooth_ray.objective.forward_process import DiffusionProcess, ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseScheduleConfig


class ClipUNetFunctions(ModelFunctions, TextTraining):
    """Latents of diffusers' AutoencoderKL, DDPM's noise, prompts in windows."""

    def load(self, directory: Path) -> Components:
        """As `ModelFunctions.load`; tokens of a prompt are as many as its encoder has places."""
        return limit_window_lengths(super().load(directory))

    # Images

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled by the VAE's factor."""
        posterior = vae.encode(pixels).latent_dist
        scaling_factor = float(vae.config.scaling_factor)
        return posterior.mean * scaling_factor, posterior.std * scaling_factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        return torch.as_tensor(
            vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        )

    def size_multiple(self, parts: Components) -> int:
        """The UNet halves latents at every block but the last."""
        return self.latent_factor(parts.vae) * int(
            2 ** (len(parts.denoiser.config.block_out_channels) - 1)
        )

    def default_side(self, parts: Components) -> int:
        """The UNet's sample_size."""
        sample_size = int(parts.denoiser.config.sample_size or SAMPLE_SIZE)
        return sample_size * self.latent_factor(parts.vae)

    def in_channels(self, denoiser: Any, vae: Any) -> int:
        """The UNet's: a mask and a masked image are behind the latents of some."""
        return int(denoiser.config.in_channels)

    # Text

    @abstractmethod
    def make_clip_skip_forward(
        self, encoder: Any, forward: TextForward, clip_skip: int
    ) -> clip_text.EmbedForward:
        """Token ids (1, L) and an optional mask to what the denoiser is told of them, (1, L, D)."""

    def embed_text(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int
    ) -> Tensor:
        """(1, k L, D) by all encoders, side by side along D; see `clip_text`."""
        text_embeddings = []
        for part in self.family.text_encoders:
            encoder = parts.text_encoders[part.name]
            forward = self.make_clip_skip_forward(encoder, encoders[part.name], clip_skip)
            tokenizer = parts.tokenizers[part.tokenizer]
            text_embeddings.append(clip_text.embed_prompt(tokenizer, encoder, forward, prompt))
        return torch.cat(text_embeddings, dim=-1)

    def encode_pair(
        self, parts: Components, encode: EncodePrompt, prompts: tuple[str, str], clip_skip: int
    ) -> tuple[Conditioning, Conditioning]:
        """The shorter ends in windows of the empty prompt."""
        first_conditioning, second_conditioning = (encode(prompt, clip_skip) for prompt in prompts)
        return clip_text.pad_windows(
            first_conditioning, second_conditioning, lambda: encode("", clip_skip)
        )

    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """Ids of each encoder, (B, L) where every caption fits one window, else (B, k, L)."""
        return Conditioning(
            {
                token_ids_name(part): tokenize_windows(
                    parts.tokenizers[part.tokenizer], list(captions)
                )
                for part in self.family.text_encoders
            }
        )

    # Denoiser and noise

    def list_blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        """Down, up, and the one between."""
        blocks: list[nn.Module] = []
        for name in ("down_blocks", "up_blocks"):
            blocks += list(getattr(denoiser, name, []))
        if isinstance(middle_block := getattr(denoiser, "mid_block", None), nn.Module):
            blocks.append(middle_block)
        return blocks

    def forward_process(self, parts: Components) -> ForwardProcess:
        """DDPM's."""
        return DiffusionProcess(parts.schedule)

    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> NoiseScheduleConfig | FlowSchedule:
        """The scheduler's, whatever the shape."""
        return NoiseScheduleConfig.from_config(parts.schedule.config)


def token_ids_name(part: TextEncoderPart) -> str:
    """Under which `tokenize` has an encoder's token ids: input_ids, input_ids_2."""
    return f"input_ids{part.name.removeprefix('text_encoder')}"
