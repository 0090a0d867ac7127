"""What Qwen-Image computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of a prompt, D width of
Qwen2.5-VL.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, QwenImagePipeline
from torch import Tensor, nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.qwen_image import SIDE
from dreambooth_ray.models.families.qwen_image_checks import MAX_TOKENS, PATCH
from dreambooth_ray.models.families.qwen_image_positions import RotaryPositions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.padded_prompts import PaddedPromptMixin
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.qwen_vae_functions import QwenVAEFunctions
from dreambooth_ray.models.qwen_vl_text import NUM_DROPPED, tokenize_qwen_vl_prompt

_ENCODER = "text_encoder"
# Of an example: a caption of some length.
_EXAMPLE_TOKENS = 64


class TraceableQwenImageTransformer(NetworkFunction):
    """A transformer of tokens as a function of latents."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        if not isinstance(network.pos_embed, RotaryPositions):
            network.pos_embed = RotaryPositions(network.pos_embed)

    def forward(
        self, x: Tensor, time: Tensor, hidden: Tensor, is_token: Tensor | None = None
    ) -> Tensor:
        """x: (B, C, h, w), time: (B,) sigmas; returns (B, C, h, w).

        hidden: (B, L, D); is_token: (B, L) bool, None where all are
        """
        patches = F.pixel_unshuffle(x, PATCH)
        velocity: Tensor = self.network(
            hidden_states=patches.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=is_token,
            timestep=time,
            img_shapes=[(1, *patches.shape[-2:])],
            return_dict=False,
        )[0]
        return F.pixel_shuffle(velocity.transpose(1, 2).reshape(patches.shape), PATCH)


class QwenImageFunctions(PaddedPromptMixin, QwenVAEFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D).

    Where rows are of several lengths there is `is_token` too, (B, L) bool: what is no padding.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return QwenImagePipeline(**self.pipeline_parts(parts, directory))

    def patch_side(self, parts: Components) -> int:
        """Of all Qwen-Image."""
        return PATCH

    def default_side(self, parts: Components) -> int:
        """The pipeline's."""
        return SIDE

    # Text

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """The last hidden state, of the prompt and the marks behind it."""
        token_ids = tokenize_qwen_vl_prompt(parts.tokenizer, prompt, MAX_TOKENS).to(
            parts.text_encoder.device
        )
        encoder_outputs = encoders[_ENCODER](
            token_ids, torch.ones_like(token_ids), output_hidden_states=True
        )
        return Conditioning({"hidden": encoder_outputs.hidden_states[-1][:, NUM_DROPPED:]})

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`."""
        tokenize_qwen_vl_prompt(tokenizers["tokenizer"], prompt, MAX_TOKENS)

    # Denoiser

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return TraceableQwenImageTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of a caption of 64 tokens."""
        hidden_shape = batch, _EXAMPLE_TOKENS, int(parts.denoiser.config.joint_attention_dim)
        return Conditioning({"hidden": torch.empty(hidden_shape)})

    def guide(
        self, conditional: Tensor, guidance_delta: Tensor, scale: float, fraction: float
    ) -> Tensor:
        """Each token as long as it is with the prompt and without guidance."""
        guided_prediction = super().guide(conditional, guidance_delta, scale, fraction)
        norm_ratio = _compute_patch_norms(conditional) / _compute_patch_norms(guided_prediction)
        return guided_prediction * norm_ratio.repeat_interleave(PATCH, dim=0).repeat_interleave(
            PATCH, dim=1
        )


def _compute_patch_norms(prediction: Tensor) -> Tensor:
    """(C, h, w) to (h / 2, w / 2): the length of each token."""
    patch_norms: Tensor = torch.linalg.vector_norm(F.pixel_unshuffle(prediction, PATCH), dim=0)
    return patch_norms
