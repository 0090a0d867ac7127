"""What Z-Image computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of a prompt, padded to
a multiple of 32, D width of Qwen3.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ZImagePipeline
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import nn

from dreambooth_ray.models.chat_text import tokenize_chat
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.z_image_checks import MAX_TOKENS, PATCH
from dreambooth_ray.models.families.z_image_forward import TraceableZImageTransformer
from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions

_ENCODER = "text_encoder"
# Of an example: a caption of some length.
_EXAMPLE_TOKENS = 64


class ZImageFunctions(FlowFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D), and which of it `is_token`, (B, L) bool.

    Where rows are of several lengths there is `is_attended` too: tokens, and the padding to the
    row's own multiple of 32, which the transformer sees.
    """

    # As diffusers trains it.
    takes_mode = True

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return ZImagePipeline(**self.pipeline_parts(parts, directory))

    def patch_side(self, parts: Components) -> int:
        """Of all Z-Image."""
        return PATCH

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """The last hidden state but one of the prompt as a user's message, then zeros.

        The pipeline pads before it encodes: attention is causal, so no token sees the difference.
        """
        token_ids, mask = tokenize_chat(parts.tokenizer, prompt, MAX_TOKENS, thinks=True)
        token_ids = token_ids[mask.bool()][None].to(parts.text_encoder.device)
        encoder_outputs = encoders[_ENCODER](token_ids, output_hidden_states=True)
        hidden = encoder_outputs.hidden_states[-2]
        token_mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return _pad_tokens(Conditioning({"hidden": hidden, "is_token": token_mask}), SEQ_MULTI_OF)

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`."""
        tokenize_chat(tokenizers["tokenizer"], prompt, MAX_TOKENS, thinks=True)

    def join_rows(self, rows: Sequence[Conditioning]) -> Conditioning:
        """With zeros behind the shorter ones, which are marked."""
        row_lengths = [row["hidden"].shape[1] for row in rows]
        if len(set(row_lengths)) == 1:
            return Conditioning.join(rows)
        return Conditioning.join(
            [_pad_tokens(_mark_attended(row), max(row_lengths)) for row in rows]
        )

    def batch_key(self, conditioning: Conditioning) -> Hashable:
        """All can share a forward."""
        return None

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return TraceableZImageTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of a caption of 64 tokens."""
        token_shape = batch, _EXAMPLE_TOKENS
        hidden = torch.empty(*token_shape, parts.text_encoder.config.hidden_size)
        return Conditioning(
            {"hidden": hidden, "is_token": torch.ones(token_shape, dtype=torch.bool)}
        )


def _mark_attended(row: Conditioning) -> Conditioning:
    """With all of it attended to."""
    return Conditioning({**row.tensors, "is_attended": torch.ones_like(row["is_token"])})


def _pad_tokens(row: Conditioning, multiple: int) -> Conditioning:
    """With zeros, and False, to a multiple of so many tokens."""
    num_padding = -row["hidden"].shape[1] % multiple
    padded_tensors = {
        tensor_name: F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, num_padding))
        for tensor_name, tensor in row.tensors.items()
    }
    return Conditioning(padded_tensors)
