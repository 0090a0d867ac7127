"""What Krea 2 computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of a prompt, N layers
of Qwen3-VL that are read, D its width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, Krea2Pipeline
from torch import Tensor, nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.krea2 import SIDE
from dreambooth_ray.models.families.krea2_checks import (
    IS_DISTILLED,
    MAX_TOKENS,
    PATCH,
    PATCH_SIZE,
    SELECTED_LAYERS,
    read_text_layer_indices,
)
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.padded_prompts import PaddedPromptMixin
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.qwen_vae_functions import QwenVAEFunctions
from dreambooth_ray.models.qwen_vl_text import NUM_DROPPED, tokenize_qwen_vl_prompt

_ENCODER = "text_encoder"
# Of images of any size, where a model is distilled: the pipeline's.
_DISTILLED_SHIFT = 1.15
# Of an example: a caption of some length.
_EXAMPLE_TOKENS = 64


class TraceableKrea2Transformer(NetworkFunction):
    """A transformer of tokens as a function of latents."""

    def forward(
        self, x: Tensor, time: Tensor, hidden: Tensor, is_token: Tensor | None = None
    ) -> Tensor:
        """x: (B, C, h, w), time: (B,) sigmas; returns (B, C, h, w).

        hidden: (B, L, N, D); is_token: (B, L) bool, None where all are
        """
        patches = F.pixel_unshuffle(x, PATCH)
        num_rows, num_columns = patches.shape[-2:]
        velocity: Tensor = self.network(
            hidden_states=patches.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            encoder_attention_mask=is_token,
            timestep=time,
            position_ids=_make_positions(hidden.shape[1], num_rows, num_columns, x.device),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(velocity.transpose(1, 2).reshape(patches.shape), PATCH)


def _make_positions(num_tokens: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(L + rows columns, 3) int64: zeros of text, then (0, row, column) of each image token."""
    axis_positions = (torch.arange(side, device=device) for side in (1, rows, columns))
    text_positions = torch.zeros((num_tokens, 3), dtype=torch.int64, device=device)
    return torch.cat([text_positions, torch.cartesian_prod(*axis_positions)])


class Krea2Functions(PaddedPromptMixin, QwenVAEFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, N, D).

    Where rows are of several lengths there is `is_token` too, (B, L) bool: what is no padding.
    diffusers pads each prompt to 512 tokens, which its encoder and its transformer mask out, and
    which take no position: without them the numbers are the same.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        pipeline_setting_keys = (SELECTED_LAYERS, IS_DISTILLED, PATCH_SIZE)
        return Krea2Pipeline(
            **self.pipeline_parts(parts, directory),
            **{key: parts.settings[key] for key in pipeline_setting_keys if key in parts.settings},
        )

    def patch_side(self, parts: Components) -> int:
        """Of all Krea 2."""
        return PATCH

    def default_side(self, parts: Components) -> int:
        """The pipeline's."""
        return SIDE

    def compute_shift(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> float:
        """Along the scheduler's line; of distilled models always the same."""
        if parts.settings.get(IS_DISTILLED):
            return _DISTILLED_SHIFT
        return super().compute_shift(parts, latent_shape, num_steps)

    # Text

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """Hidden states of many layers, of the prompt and the marks behind it."""
        token_ids = tokenize_qwen_vl_prompt(parts.tokenizer, prompt, MAX_TOKENS).to(
            parts.text_encoder.device
        )
        encoder_outputs = encoders[_ENCODER](
            token_ids, torch.ones_like(token_ids), output_hidden_states=True
        )
        layer_states = [
            encoder_outputs.hidden_states[k] for k in read_text_layer_indices(dict(parts.settings))
        ]
        return Conditioning({"hidden": torch.stack(layer_states, dim=2)[:, NUM_DROPPED:]})

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`."""
        tokenize_qwen_vl_prompt(tokenizers["tokenizer"], prompt, MAX_TOKENS)

    # Denoiser

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return TraceableKrea2Transformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of a caption of 64 tokens."""
        config = parts.denoiser.config
        hidden_shape = (
            batch,
            _EXAMPLE_TOKENS,
            int(config.num_text_layers),
            int(config.text_hidden_dim),
        )
        return Conditioning({"hidden": torch.empty(hidden_shape)})
