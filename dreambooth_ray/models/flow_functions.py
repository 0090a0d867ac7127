"""What families of flow matching have in common.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import ModelFunctions
from dreambooth_ray.objective.forward_process import FlowProcess, ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule

# What a denoiser that embeds guidance is told in training: --guidance_scale of diffusers' scripts.
TRAINING_GUIDANCE = 3.5


class FlowFunctions(ModelFunctions):
    """Straight lines from images to noise; latents with the VAE's shift and factor.

    takes_mode: whether training takes the posterior's mode: there is no deviation then
    spaces_evenly: whether levels are evenly spread before they are shifted, from 1 to 1 by the
        number of steps, as the later pipelines of diffusers do; else as the scheduler spreads them
    """

    scheduler_class = "FlowMatchEulerDiscreteScheduler"
    takes_mode: ClassVar[bool] = False
    spaces_evenly: ClassVar[bool] = True

    # Images

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted and scaled as the VAE says."""
        posterior = vae.encode(pixels).latent_dist
        shift_factor, scaling_factor = _read_shift_and_scale(vae)
        mean = (posterior.mean - shift_factor) * scaling_factor
        return mean, torch.zeros_like(mean) if self.takes_mode else posterior.std * scaling_factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        shift_factor, scaling_factor = _read_shift_and_scale(vae)
        return torch.as_tensor(
            vae.decode(latents / scaling_factor + shift_factor, return_dict=False)[0]
        )

    @abstractmethod
    def patch_side(self, parts: Components) -> int:
        """Latents that a token spans each way."""

    def size_multiple(self, parts: Components) -> int:
        """A token's side."""
        return self.latent_factor(parts.vae) * self.patch_side(parts)

    def default_side(self, parts: Components) -> int:
        """The VAE's sample_size."""
        return int(parts.vae.config.sample_size)

    def tell_guidance(self, conditioning: Conditioning, scale: float) -> Conditioning:
        """As `guidance`, (B,), the last of its tensors: in place of what training tells."""
        if not self.family.embeds_guidance:
            return conditioning
        guidance = torch.full((len(conditioning),), scale, device=conditioning["hidden"].device)
        return Conditioning({**conditioning.tensors, "guidance": guidance})

    # Noise

    def forward_process(self, parts: Components) -> ForwardProcess:
        """Of the scheduler's levels, which are not shifted in training where images shift them."""
        return FlowProcess(parts.schedule)

    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> FlowSchedule:
        """Shifted as the scheduler has it: by the image's size where it says so."""
        scheduler = type(parts.schedule).from_config(parts.schedule.config)
        timestep_options: dict[str, Any] = {"num_inference_steps": num_steps}
        if self.spaces_evenly:
            timestep_options = {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps)}
        if scheduler.config.use_dynamic_shifting:
            timestep_options["mu"] = self.compute_shift(parts, latent_shape, num_steps)
        scheduler.set_timesteps(**timestep_options)
        return FlowSchedule(tuple(scheduler.sigmas.tolist()))

    def compute_shift(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> float:
        """The more, the more tokens an image has: along the scheduler's line."""
        scheduler_config = parts.schedule.config
        shift: float = calculate_shift(
            self.count_image_tokens(parts, latent_shape),
            scheduler_config.base_image_seq_len,
            scheduler_config.max_image_seq_len,
            scheduler_config.base_shift,
            scheduler_config.max_shift,
        )
        return shift

    def count_image_tokens(self, parts: Components, latent_shape: tuple[int, int]) -> int:
        """Of an image."""
        patch_side = self.patch_side(parts)
        return (latent_shape[0] // patch_side) * (latent_shape[1] // patch_side)


def _read_shift_and_scale(vae: Any) -> tuple[float, float]:
    """Shift and factor of latents."""
    return float(vae.config.shift_factor or 0), float(vae.config.scaling_factor)
