"""What Qwen-Image computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of a prompt, D width of
Qwen2.5-VL.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, QwenImagePipeline
from torch import Tensor, nn

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.qwen_image import SIDE
from dreambooth_ray.models.families.qwen_image_checks import MAX_TOKENS, NUM_DROPPED, PATCH
from dreambooth_ray.models.families.qwen_image_positions import RotaryPositions
from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.prompt_limits import LimitedPrompts
from dreambooth_ray.models.qwen_vae_checks import compute_qwen_vae_factor
from dreambooth_ray.models.text_rows import join_text_rows

_ENCODER = "text_encoder"
# As QwenImagePipeline has it; what stands before the prompt is dropped.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
# Of an example: a caption of some length.
_EXAMPLE_TOKENS = 64


class PatchTransformer(NetworkFunction):
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


class QwenImageFunctions(FlowFunctions, LimitedPrompts):
    """A conditioning is `hidden`, (B, L, D).

    Where rows are of several lengths there is `is_token` too, (B, L) bool: what is no padding.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return QwenImagePipeline(**self.pipeline_parts(parts, directory))

    # Images

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of mean 0 and deviation 1 by the VAE's statistics; an image is a video of one frame."""
        posterior = vae.encode(pixels[:, :, None]).latent_dist
        shift, deviation = _read_statistics(vae, pixels)
        return (posterior.mean[:, :, 0] - shift) / deviation, posterior.std[:, :, 0] / deviation

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        shift, deviation = _read_statistics(vae, latents)
        frames = (latents * deviation + shift)[:, :, None]
        return torch.as_tensor(vae.decode(frames, return_dict=False)[0][:, :, 0])

    def latent_channels(self, vae: Any) -> int:
        """The VAE's z_dim."""
        return int(vae.config.z_dim)

    def latent_factor(self, vae: Any) -> int:
        """Of its blocks that halve images."""
        return compute_qwen_vae_factor(vae.config)

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
        ids = _tokenize(parts.tokenizer, prompt).to(parts.text_encoder.device)
        outputs = encoders[_ENCODER](ids, torch.ones_like(ids), output_hidden_states=True)
        return Conditioning({"hidden": outputs.hidden_states[-1][:, NUM_DROPPED:]})

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `LimitedPrompts.check_prompt`."""
        _tokenize(tokenizers["tokenizer"], prompt)

    def join_rows(self, rows: Sequence[Conditioning]) -> Conditioning:
        """As `join_text_rows`."""
        return join_text_rows(rows)

    def batch_key(self, conditioning: Conditioning) -> Hashable:
        """All can share a forward."""
        return None

    # Denoiser

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return PatchTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of a caption of 64 tokens."""
        shape = batch, _EXAMPLE_TOKENS, int(parts.denoiser.config.joint_attention_dim)
        return Conditioning({"hidden": torch.empty(shape)})

    def guide(
        self, conditional: Tensor, guidance_delta: Tensor, scale: float, fraction: float
    ) -> Tensor:
        """Each token as long as it is with the prompt and without guidance."""
        guided = super().guide(conditional, guidance_delta, scale, fraction)
        ratio = _measure_tokens(conditional) / _measure_tokens(guided)
        return guided * ratio.repeat_interleave(PATCH, dim=0).repeat_interleave(PATCH, dim=1)


def _read_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) mean and deviation, like `latents`."""
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def _tokenize(tokenizer: Any, prompt: str) -> Tensor:
    """(1, 34 + L) ids; raises: ConfigError for a prompt that is longer than the model reads"""
    ids: Tensor = tokenizer(TEMPLATE.format(prompt), return_tensors="pt").input_ids
    num_tokens = ids.shape[1] - NUM_DROPPED
    if num_tokens > MAX_TOKENS:
        raise ConfigError(
            f"the prompt {prompt[:40]!r}... takes {num_tokens} tokens, with the marks of its "
            f"message, and the model reads {MAX_TOKENS}; shorten it"
        )
    return ids


def _measure_tokens(prediction: Tensor) -> Tensor:
    """(C, h, w) to (h / 2, w / 2): the length of each token."""
    lengths: Tensor = torch.linalg.vector_norm(F.pixel_unshuffle(prediction, PATCH), dim=0)
    return lengths
