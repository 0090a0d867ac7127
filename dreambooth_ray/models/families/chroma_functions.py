"""What Chroma computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of T5, D its width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ChromaPipeline, DiffusionPipeline
from torch import Tensor, nn

from dreambooth_ray.compat.diffusers import passing_mask_to_checkpointed_blocks
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.flux1_checks import MAX_TOKENS, PATCH
from dreambooth_ray.models.families.flux1_functions import make_image_positions
from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.padded_prompts import PaddedPromptMixin
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.t5_tokens import tokenize_t5

_ENCODER = "text_encoder"
# Of an example: a caption of some length.
_EXAMPLE_TOKENS = 64


class MaskedTransformer(NetworkFunction):
    """A transformer of tokens as a function of latents."""

    def forward(
        self, x: Tensor, time: Tensor, hidden: Tensor, is_token: Tensor | None = None
    ) -> Tensor:
        """x: (B, C, h, w), time: (B,) sigmas; returns (B, C, h, w).

        hidden: (B, L, D); is_token: (B, L) bool, None where all are
        """
        latent_patches = F.pixel_unshuffle(x, PATCH)
        num_rows, num_columns = latent_patches.shape[-2:]
        attention_mask = (
            None if is_token is None else F.pad(is_token, (0, num_rows * num_columns), value=True)
        )
        with passing_mask_to_checkpointed_blocks(self.network, attention_mask):
            velocity: Tensor = self.network(
                hidden_states=latent_patches.flatten(2).transpose(1, 2),
                encoder_hidden_states=hidden,
                timestep=time,
                img_ids=make_image_positions(num_rows, num_columns, x.device),
                txt_ids=torch.zeros((hidden.shape[1], 3), dtype=torch.int64, device=x.device),
                attention_mask=attention_mask,
                return_dict=False,
            )[0]
        return F.pixel_shuffle(velocity.transpose(1, 2).reshape(latent_patches.shape), PATCH)


class ChromaFunctions(PaddedPromptMixin, FlowFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D): a prompt's tokens and one of padding.

    Where rows are of several lengths there is `is_token` too, (B, L) bool.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return ChromaPipeline(**self.pipeline_parts(parts, directory))

    def patch_side(self, parts: Components) -> int:
        """FLUX.1's."""
        return PATCH

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """T5 reads the prompt alone; the transformer sees one token of padding too.

        So its authors have it. What stands behind is masked for both, and left out here.
        """
        tokenizer, device = parts.tokenizer, parts.text_encoder.device
        token_ids = tokenize_t5(tokenizer, prompt, MAX_TOKENS)
        is_prompt_token = token_ids != tokenizer.pad_token_id
        num_tokens = min(int(is_prompt_token.sum()) + 1, MAX_TOKENS)
        token_ids, mask = (
            token_ids[:, :num_tokens].to(device),
            is_prompt_token[:, :num_tokens].long().to(device),
        )
        return Conditioning({"hidden": encoders[_ENCODER](token_ids, mask).last_hidden_state})

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`."""
        tokenize_t5(tokenizers["tokenizer"], prompt, MAX_TOKENS)

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return MaskedTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of a caption of 64 tokens."""
        hidden_shape = batch, _EXAMPLE_TOKENS, int(parts.denoiser.config.joint_attention_dim)
        return Conditioning({"hidden": torch.empty(hidden_shape)})
