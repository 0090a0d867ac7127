"""What all FLUX.2 compute: packed latents, and three layers' hidden states as text.

Legend: B batch, C latent channels (those of the VAE in patches of two by two), h, w latent sides,
H, W pixels, L tokens of a prompt, D width of the text encoder's three layers together.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor, nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.flux2_checks import MAX_TOKENS, PATCH
from dreambooth_ray.models.flow_functions import TRAINING_GUIDANCE, FlowFunctions
from dreambooth_ray.models.model_directory import compute_latent_factor
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import NetworkFunction
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions

_ENCODER = "text_encoder"


class TraceableFlux2Transformer(NetworkFunction):
    """A transformer of tokens as a function of latents."""

    def forward(
        self, x: Tensor, time: Tensor, hidden: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """x: (B, C, h, w), time: (B,) sigmas, hidden: (B, L, D); returns (B, C, h, w).

        guidance: (B,) where it is embedded
        """
        latent_height, latent_width = x.shape[-2:]
        velocity: Tensor = self.network(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            timestep=time,
            guidance=guidance,
            img_ids=_make_positions(latent_height, latent_width, 1, x.device),
            txt_ids=_make_positions(1, 1, hidden.shape[1], x.device),
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2).reshape(x.shape)


def _make_positions(height: int, width: int, length: int, device: torch.device) -> Tensor:
    """(height width length, 4) int64: (0, row, column, token) of each token."""
    axis_positions = (torch.arange(side, device=device) for side in (1, height, width, length))
    return torch.cartesian_prod(*axis_positions)


class Flux2Functions(FlowFunctions, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D), and `guidance`, (B,), where it is embedded.

    Padding is part of `hidden`, and nothing masks it.

    text_layers: hidden states of the text encoder that are joined, 0 its embeddings
    """

    text_layers: ClassVar[tuple[int, ...]]

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """In patches, of mean 0 and deviation 1 by the VAE's statistics.

        Its training takes the posterior's mode: there is no deviation.
        """
        latents = _to_patches(vae.encode(pixels).latent_dist.mode())
        mean, deviation = _read_statistics(vae, latents)
        normalized_latents = (latents - mean) / deviation
        return normalized_latents, torch.zeros_like(normalized_latents)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        mean, deviation = _read_statistics(vae, latents)
        spatial_latents = _from_patches(latents * deviation + mean)
        return torch.as_tensor(vae.decode(spatial_latents, return_dict=False)[0])

    def latent_channels(self, vae: Any) -> int:
        """The VAE's, of a patch."""
        return int(vae.config.latent_channels) * PATCH**2

    def latent_factor(self, vae: Any) -> int:
        """The VAE's, times the patch."""
        return compute_latent_factor(vae.config) * PATCH

    def patch_side(self, parts: Components) -> int:
        """Latents are patches."""
        return 1

    @abstractmethod
    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor]:
        """(1, L) ids of the prompt in its message, padded, and their mask.

        raises: ConfigError for a prompt that is longer
        """

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """Hidden states of three layers, side by side."""
        device = parts.text_encoder.device
        token_ids, mask = (tensor.to(device) for tensor in self.tokenize(parts.tokenizer, prompt))
        states = encoders[_ENCODER](token_ids, mask, output_hidden_states=True).hidden_states
        return self._make_conditioning(torch.cat([states[k] for k in self.text_layers], dim=-1))

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`."""
        self.tokenize(tokenizers["tokenizer"], prompt)

    def _make_conditioning(self, hidden: Tensor) -> Conditioning:
        return self.tell_guidance(Conditioning({"hidden": hidden}), TRAINING_GUIDANCE)

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return TraceableFlux2Transformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of any prompt."""
        hidden_shape = batch, MAX_TOKENS, int(parts.denoiser.config.joint_attention_dim)
        return self._make_conditioning(torch.empty(hidden_shape))

    def compute_shift(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> float:
        """The more, the more tokens an image has; of the steps too, and not of the scheduler."""
        shift: float = compute_empirical_mu(self.count_image_tokens(parts, latent_shape), num_steps)
        return shift


def _read_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1) mean and deviation of latents in patches, like `latents`."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    return mean.to(latents), deviation.to(latents)


def _to_patches(latents: Tensor) -> Tensor:
    """(B, c, 2 h, 2 w) to (B, 4 c, h, w), channels in the order (channel, row, column)."""
    return nn.functional.pixel_unshuffle(latents, PATCH)


def _from_patches(latents: Tensor) -> Tensor:
    """The way back."""
    return nn.functional.pixel_shuffle(latents, PATCH)
