"""What Stable Diffusion 1.x and 2.x compute.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, k windows of a text, L tokens
of a window, D embedding width.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from dreambooth_ray.models import clip_text
from dreambooth_ray.models.components import (
    Components,
    build_empty_network,
    load_network,
    load_scheduler,
    load_tokenizer,
)
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.model_functions import ModelFunctions, TextForward
from dreambooth_ray.models.part_configs import SAMPLE_SIZE
from dreambooth_ray.models.prompt_windows import embed_windows, tokenize_windows
from dreambooth_ray.objective.forward_process import DiffusionProcess, ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseSchedule

_ENCODER = "text_encoder"
_PROCESSOR = "feature_extractor"


class PlainUNet(nn.Module):
    """A UNet as a function from tensors to one tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor) -> Tensor:
        """x: (B, C, h, w), time: (B,), hidden: (B, k L, D); returns (B, C, h, w)."""
        return torch.as_tensor(self.unet(x, time, hidden, return_dict=False)[0])


class PlainTextEncoder(nn.Module):
    """A text encoder as a function from token ids to its last hidden state."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, L) int64; returns (B, L, D)."""
        return torch.as_tensor(self.text_encoder(input_ids).last_hidden_state)


class StableDiffusionFunctions(ModelFunctions):
    """A conditioning is `hidden`, (B, k L, D): CLIP's last hidden state."""

    def load(self, directory: Path) -> Components:
        """The networks, the tokenizer and DDPM's schedule."""
        text_encoder = load_network(directory, self.family.text_encoders[0])
        tokenizer = load_tokenizer(directory, "tokenizer", "CLIPTokenizer")
        # Some tokenizers do not know of how many positions the encoder has.
        positions = text_encoder.config.max_position_embeddings
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        return self.assemble(
            unet=load_network(directory, self.family.denoiser),
            vae=load_network(directory, self.family.vae).eval().requires_grad_(False),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            schedule=DDPMScheduler.from_pretrained(directory, subfolder="scheduler"),
        )

    def assemble(
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
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            unet=parts.unet,
            scheduler=load_scheduler(directory, "DDPMScheduler"),
            safety_checker=None,
            feature_extractor=(
                CLIPImageProcessor.from_pretrained(directory, subfolder=_PROCESSOR)
                if has_processor
                else None
            ),
            requires_safety_checker=False,
        )

    def build_empty(self, directory: Path) -> Components:
        """As `ModelFunctions.build_empty`."""
        unet, vae, text_encoder = (
            build_empty_network(directory, part) for part in self.family.networks
        )
        return self.assemble(unet, vae.requires_grad_(False), text_encoder, None, None)

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled by the VAE's factor."""
        posterior = vae.encode(pixels).latent_dist
        factor = float(vae.config.scaling_factor)
        return posterior.mean * factor, posterior.std * factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        return torch.as_tensor(
            vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        )

    def latent_channels(self, vae: Any) -> int:
        """The VAE's."""
        return int(vae.config.latent_channels)

    def latent_factor(self, vae: Any) -> int:
        """The VAE's."""
        return compute_latent_factor(vae.config)

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

    def encode_prompt(
        self,
        parts: Components,
        encoders: Mapping[str, TextForward],
        prompt: str,
        clip_skip: int = 0,
    ) -> Conditioning:
        """As diffusers' pipeline has it, where that takes the prompt; see `clip_text`."""
        encoder = parts.text_encoder
        forward = clip_text.skipping_forward(encoder, encoders[_ENCODER], clip_skip)
        return Conditioning(
            {"hidden": clip_text.embed_prompt(parts.tokenizer, encoder, forward, prompt)}
        )

    def pad_pair(
        self, first: Conditioning, second: Conditioning, empty: Callable[[], Conditioning]
    ) -> tuple[Conditioning, Conditioning]:
        """The shorter ends in windows of the empty prompt."""
        hidden = clip_text.pad_windows([first["hidden"], second["hidden"]], empty)
        return Conditioning({"hidden": hidden[0]}), Conditioning({"hidden": hidden[1]})

    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """`input_ids`, (B, L) where every caption fits one window, else (B, k, L)."""
        return Conditioning({"input_ids": tokenize_windows(parts.tokenizer, list(captions))})

    def token_embedder(
        self, parts: Components, functions: Mapping[str, Callable[..., Any]]
    ) -> Callable[[Conditioning], Conditioning]:
        """As `encode_prompt`, without clip_skip."""
        end_id, encode = int(parts.tokenizer.eos_token_id), functions[_ENCODER]

        def embed(tokens: Conditioning) -> Conditioning:
            return Conditioning({"hidden": embed_windows(encode, tokens["input_ids"], end_id)})

        return embed

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """To the last hidden state."""
        return PlainTextEncoder(encoder)

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, timesteps and `hidden`."""
        return PlainUNet(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of one window."""
        config = parts.text_encoder.config
        shape = batch, config.max_position_embeddings, config.hidden_size
        return Conditioning({"hidden": torch.empty(shape)})

    def embed_examples(
        self,
        parts: Components,
        functions: Mapping[str, Callable[..., Any]],
        conditioning: Conditioning,
    ) -> Conditioning:
        """Of one window of token ids."""
        ids = torch.zeros(conditioning["hidden"].shape[:2], dtype=torch.int64)
        return Conditioning({"hidden": functions[_ENCODER](ids)})

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
    ) -> NoiseSchedule | FlowSchedule:
        """The scheduler's, whatever the shape."""
        return NoiseSchedule.from_config(parts.schedule.config)
