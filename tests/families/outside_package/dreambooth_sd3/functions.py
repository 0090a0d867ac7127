"""What Stable Diffusion 3 computes.

Legend: B batch, C latent channels, h, w latent sides, L tokens of CLIP and T5, D width of T5.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.t5_tokens import tokenize_t5
from dreambooth_ray.objective.forward_process import FlowProcess, ForwardProcess
from dreambooth_sd3 import NUM_TOKENS, PATCH

_NUM_CLIP_TOKENS = 77


class TimedTransformer(NetworkFunction):
    """A transformer of timesteps as a function of sigmas."""

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
        """x: (B, C, h, w), time: (B,), hidden: (B, L, D), pooled: (B, both CLIPs' width)."""
        velocity: Tensor = self.network(
            hidden_states=x,
            timestep=1000 * time,
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return velocity


class StableDiffusion3Functions(FlowFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D), and `pooled`."""

    spaces_evenly = False  # as its scheduler has them

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """diffusers' own."""
        return StableDiffusion3Pipeline(**self.pipeline_parts(parts, directory))

    def patch_side(self, parts: Components) -> int:
        """Of all of them."""
        return PATCH

    def default_side(self, parts: Components) -> int:
        """The transformer's sample_size."""
        return int(parts.denoiser.config.sample_size) * self.latent_factor(parts.vae)

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """CLIP's states side by side, then T5's, which reads the prompt whole."""
        device, tokenizers = parts.text_encoder.device, parts.tokenizers
        states, summaries = [], []
        for number in ("", "_2"):
            ids = _tokenize_clip(tokenizers[f"tokenizer{number}"], prompt)
            encode = encoders[f"text_encoder{number}"]
            output = encode(ids.to(device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            summaries.append(output.text_embeds)
        ids = tokenize_t5(tokenizers["tokenizer_3"], prompt, NUM_TOKENS)
        long_states = encoders["text_encoder_3"](ids.to(device))[0]
        clip_states = torch.cat(states, dim=-1)
        num_missing = long_states.shape[-1] - clip_states.shape[-1]
        clip_states = nn.functional.pad(clip_states, (0, num_missing))
        hidden = torch.cat([clip_states, long_states], dim=1)
        return Conditioning({"hidden": hidden, "pooled": torch.cat(summaries, dim=-1)})

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """T5's is the limit: what CLIP reads of a prompt is cut, as diffusers does."""
        tokenize_t5(tokenizers["tokenizer_3"], prompt, NUM_TOKENS)

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas, `hidden` and `pooled`."""
        return TimedTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of any prompt."""
        config, num_tokens = parts.denoiser.config, _NUM_CLIP_TOKENS + NUM_TOKENS
        return Conditioning(
            {
                "hidden": torch.empty(batch, num_tokens, config.joint_attention_dim),
                "pooled": torch.empty(batch, config.pooled_projection_dim),
            }
        )

    def forward_process(self, parts: Components) -> ForwardProcess:
        """Along straight lines; errors are those of the image, as in diffusers' script."""
        return FlowProcess(parts.schedule, preconditions=True)


def _tokenize_clip(tokenizer: Any, prompt: str) -> Tensor:
    """(1, L) token ids, padded or cut."""
    batch = tokenizer(
        prompt,
        padding="max_length",
        max_length=_NUM_CLIP_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    return torch.as_tensor(batch.input_ids)
