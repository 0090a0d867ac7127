"""What Stable Diffusion 3 computes.

Legend: B batch, C latent channels, h, w latent sides, L tokens of CLIP and T5, D width of T5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_scheduler
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import ModelFunctions, TextForward
from dreambooth_ray.objective.forward_process import FlowProcess, ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule
from dreambooth_sd3 import PATCH

_NUM_CLIP_TOKENS, _NUM_TOKENS = 77, 256


class TimedTransformer(nn.Module):
    """A transformer of timesteps as a function of sigmas."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer  # the first child, as the product expects it

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
        """x: (B, C, h, w), time: (B,), hidden: (B, L, D), pooled: (B, both CLIPs' width)."""
        velocity: Tensor = self.transformer(
            hidden_states=x,
            timestep=1000 * time,
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return velocity


class StableDiffusion3Functions(ModelFunctions):
    """A conditioning is `hidden`, (B, L, D), and `pooled`."""

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """diffusers' own."""
        return StableDiffusion3Pipeline(
            scheduler=load_scheduler(directory, "FlowMatchEulerDiscreteScheduler"),
            vae=parts.vae,
            **parts.text_encoders,
            **parts.tokenizers,
            transformer=parts.denoiser,
        )

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted and scaled."""
        posterior, scale = vae.encode(pixels).latent_dist, vae.config.scaling_factor
        return (posterior.mean - vae.config.shift_factor) * scale, posterior.std * scale

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """The way back."""
        raw = latents / vae.config.scaling_factor + vae.config.shift_factor
        return torch.as_tensor(vae.decode(raw, return_dict=False)[0])

    def size_multiple(self, parts: Components) -> int:
        """A patch."""
        return self.latent_factor(parts.vae) * PATCH

    def default_side(self, parts: Components) -> int:
        """The transformer's sample_size."""
        return int(parts.denoiser.config.sample_size) * self.latent_factor(parts.vae)

    def encode_prompt(
        self,
        parts: Components,
        encoders: Mapping[str, TextForward],
        prompt: str,
        clip_skip: int = 0,
    ) -> Conditioning:
        """CLIP's states side by side, then T5's, which reads the prompt whole."""
        device, tokenizers = parts.text_encoder.device, parts.tokenizers
        states, summaries = [], []
        for number in ("", "_2"):
            ids = _tokenize(tokenizers[f"tokenizer{number}"], prompt, _NUM_CLIP_TOKENS, cut=True)
            encode = encoders[f"text_encoder{number}"]
            output = encode(ids.to(device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            summaries.append(output.text_embeds)
        ids = _tokenize(tokenizers["tokenizer_3"], prompt, _NUM_TOKENS)
        if ids.shape[1] > _NUM_TOKENS:
            raise ConfigError(
                f"the prompt {prompt[:40]!r}... takes {ids.shape[1]} tokens, and the model reads "
                f"{_NUM_TOKENS}; shorten it"
            )
        long_states = encoders["text_encoder_3"](ids.to(device))[0]
        clip_states = torch.cat(states, dim=-1)
        num_missing = long_states.shape[-1] - clip_states.shape[-1]
        clip_states = nn.functional.pad(clip_states, (0, num_missing))
        hidden = torch.cat([clip_states, long_states], dim=1)
        return Conditioning({"hidden": hidden, "pooled": torch.cat(summaries, dim=-1)})

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas, `hidden` and `pooled`."""
        return TimedTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of any prompt."""
        config, num_tokens = parts.denoiser.config, _NUM_CLIP_TOKENS + _NUM_TOKENS
        return Conditioning(
            {
                "hidden": torch.empty(batch, num_tokens, config.joint_attention_dim),
                "pooled": torch.empty(batch, config.pooled_projection_dim),
            }
        )

    def forward_process(self, parts: Components) -> ForwardProcess:
        """Along straight lines; errors are those of the image, as in diffusers' script."""
        return FlowProcess(parts.schedule, preconditions=True)

    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> FlowSchedule:
        """The scheduler's own, whatever the size."""
        scheduler = type(parts.schedule).from_config(parts.schedule.config)
        scheduler.set_timesteps(num_steps)
        return FlowSchedule(tuple(scheduler.sigmas.tolist()))


def _tokenize(tokenizer: Any, prompt: str, num_tokens: int, *, cut: bool = False) -> Tensor:
    """(1, num_tokens) token ids, padded; more of a longer prompt, unless it is cut."""
    batch = tokenizer(
        prompt, padding="max_length", max_length=num_tokens, truncation=cut, return_tensors="pt"
    )
    return torch.as_tensor(batch.input_ids)
