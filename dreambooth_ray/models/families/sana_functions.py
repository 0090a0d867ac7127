"""What Sana computes.

Legend: B batch, C latent channels, h, w latent sides, L tokens, D width of Gemma.
"""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, SanaPipeline
from torch import Tensor, nn

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.sana_checks import MAX_TOKENS, MULTIPLE
from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.objective.noise_schedule import FlowSchedule

# What Gemma is told before a prompt: the pipeline's own.
_CALL = inspect.signature(SanaPipeline.__call__).parameters
INSTRUCTION = "\n".join(_CALL["complex_human_instruction"].default)


class TraceableSanaTransformer(NetworkFunction):
    """A transformer of timesteps as a function of sigmas.

    truncates: whether timesteps are whole numbers, as of DPMSolverMultistepScheduler
    """

    def __init__(self, network: Any, *, truncates: bool) -> None:
        super().__init__(network)
        self._time_scale = float(network.config.timestep_scale)
        self._truncates = truncates

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """x: (B, C, h, w), time: (B,), hidden: (B, L, D), mask: (B, L)."""
        timestep = 1000 * time
        if self._truncates:  # and what is rounded down by float32 alone stays
            timestep = torch.floor(timestep + 1e-3)
        velocity: Tensor = self.network(
            hidden_states=x,
            timestep=timestep * self._time_scale,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return velocity


class SanaFunctions(FlowFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D), and `mask`, (B, L)."""

    spaces_evenly = False
    truncates_time: ClassVar[bool] = True

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """diffusers' own."""
        return SanaPipeline(**self.pipeline_parts(parts, directory))

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """There is no deviation."""
        latents = vae.encode(pixels).latent * vae.config.scaling_factor
        return latents, torch.zeros_like(latents)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        return torch.as_tensor(vae.decode(latents / vae.config.scaling_factor).sample)

    def patch_side(self, parts: Components) -> int:
        """One, in all of them."""
        return 1

    def size_multiple(self, parts: Components) -> int:
        """As the pipeline has it."""
        return math.lcm(MULTIPLE, self.latent_factor(parts.vae))

    def default_side(self, parts: Components) -> int:
        """The transformer's sample_size."""
        return int(parts.denoiser.config.sample_size) * self.latent_factor(parts.vae)

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """Gemma's states of the first token and of the last ones, behind the instruction."""
        token_ids, mask = _tokenize_instructed(parts.tokenizer, prompt)
        return _encode_tokens(parts, encoders, token_ids, mask)

    def encode_negative_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """Without the instruction."""
        return _encode_tokens(parts, encoders, *_tokenize(parts.tokenizer, prompt, "", MAX_TOKENS))

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """Its tokens, beside those of the instruction."""
        _tokenize_instructed(tokenizers["tokenizer"], prompt)

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas, `hidden` and `mask`."""
        return TraceableSanaTransformer(denoiser, truncates=self.truncates_time)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of any prompt."""
        text_width = parts.denoiser.config.caption_channels
        hidden = torch.empty(batch, MAX_TOKENS, text_width)
        mask = torch.ones(batch, MAX_TOKENS, dtype=torch.int64)
        return Conditioning({"hidden": hidden, "mask": mask})

    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> FlowSchedule:
        """As the pipeline's own scheduler has it."""
        scheduler_config = parts.schedule.config
        if not scheduler_config.get("use_flow_sigmas"):
            return super().noise_schedule(parts, latent_shape, num_steps)
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler_config)
        scheduler.set_timesteps(num_steps)
        return FlowSchedule(tuple(scheduler.sigmas.tolist()))


class FlowMatchSanaFunctions(SanaFunctions):
    """With diffusers' FlowMatchEulerDiscreteScheduler, whose timesteps are no whole numbers."""

    truncates_time = False


def _encode_tokens(
    parts: Components, encoders: TextForwards, ids: Tensor, mask: Tensor
) -> Conditioning:
    device = parts.text_encoder.device
    states = encoders["text_encoder"](ids.to(device), mask.to(device))[0]
    kept_token_indices = [0, *range(1 - MAX_TOKENS, 0)]
    return Conditioning(
        {"hidden": states[:, kept_token_indices], "mask": mask[:, kept_token_indices].to(device)}
    )


def _tokenize_instructed(tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """As `_tokenize`; the mark of the beginning and the instruction's last token are counted."""
    max_tokens = len(tokenizer.encode(INSTRUCTION)) + MAX_TOKENS - 2
    return _tokenize(tokenizer, prompt, INSTRUCTION, max_tokens)


def _tokenize(
    tokenizer: Any, prompt: str, instruction: str, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """(1, num_tokens) token ids and their mask, padded; raises: ConfigError for a longer prompt"""
    tokenized_prompt = tokenizer(
        instruction + prompt.lower().strip(),
        return_tensors="pt",
        padding="max_length",
        max_length=num_tokens,
        padding_side="right",
    )
    if (surplus := tokenized_prompt.input_ids.shape[1] - num_tokens) > 0:
        raise ConfigError(
            f"the prompt {prompt[:40]!r}... has {surplus} tokens more than the model reads of a "
            f"prompt, {MAX_TOKENS}; shorten it"
        )
    return tokenized_prompt.input_ids, tokenized_prompt.attention_mask
