"""What Z-Image computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of a prompt, padded to
a multiple of 32, D width of Qwen3.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ZImagePipeline
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift
from torch import Tensor, nn

from dreambooth_ray.models.chat_text import tokenize_chat
from dreambooth_ray.models.components import Components, load_scheduler
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.z_image_checks import MAX_TOKENS, PATCH
from dreambooth_ray.models.families.z_image_forward import BatchedTransformer
from dreambooth_ray.models.model_functions import ModelFunctions, TextForward
from dreambooth_ray.objective.forward_process import FlowProcess, ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseSchedule

_ENCODER = "text_encoder"
# Of an example: a caption of some length.
_EXAMPLE_TOKENS = 64


class ZImageFunctions(ModelFunctions):
    """A conditioning is `hidden`, (B, L, D), and which of it `is_token`, (B, L) bool.

    Where rows are of several lengths there is `is_attended` too: tokens, and the padding to the
    row's own multiple of 32, which the transformer sees.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return ZImagePipeline(
            scheduler=load_scheduler(directory, "FlowMatchEulerDiscreteScheduler"),
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokenizer,
            transformer=parts.denoiser,
        )

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted and scaled. diffusers trains on the posterior's mode: there is no deviation."""
        latents = vae.encode(pixels).latent_dist.mode()
        scaled = (latents - _read_shift(vae)) * vae.config.scaling_factor
        return scaled, torch.zeros_like(scaled)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `ModelFunctions.decode`."""
        raw = latents / vae.config.scaling_factor + _read_shift(vae)
        return torch.as_tensor(vae.decode(raw, return_dict=False)[0])

    def size_multiple(self, parts: Components) -> int:
        """A patch's side."""
        return self.latent_factor(parts.vae) * PATCH

    def default_side(self, parts: Components) -> int:
        """The VAE's sample_size."""
        return int(parts.vae.config.sample_size)

    def encode_prompt(
        self,
        parts: Components,
        encoders: Mapping[str, TextForward],
        prompt: str,
        clip_skip: int = 0,
    ) -> Conditioning:
        """The last hidden state but one of the prompt as a user's message, then zeros.

        The pipeline pads before it encodes: attention is causal, so no token sees the difference.
        """
        ids, mask = tokenize_chat(parts.tokenizer, prompt, MAX_TOKENS, thinks=True)
        ids = ids[mask.bool()][None].to(parts.text_encoder.device)
        outputs = encoders[_ENCODER](ids, output_hidden_states=True)
        hidden = outputs.hidden_states[-2]
        is_token = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return _pad(Conditioning({"hidden": hidden, "is_token": is_token}), SEQ_MULTI_OF)

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `ModelFunctions.check_prompt`."""
        tokenize_chat(tokenizers["tokenizer"], prompt, MAX_TOKENS, thinks=True)

    def join_rows(self, rows: Sequence[Conditioning]) -> Conditioning:
        """With zeros behind the shorter ones, which are marked."""
        lengths = [row["hidden"].shape[1] for row in rows]
        if len(set(lengths)) == 1:
            return Conditioning.join(rows)
        return Conditioning.join([_pad(_mark(row), max(lengths)) for row in rows])

    def batch_key(self, conditioning: Conditioning) -> Hashable:
        """All can share a forward."""
        return None

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return BatchedTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of a caption of 64 tokens."""
        shape = batch, _EXAMPLE_TOKENS
        hidden = torch.empty(*shape, parts.text_encoder.config.hidden_size)
        return Conditioning({"hidden": hidden, "is_token": torch.ones(shape, dtype=torch.bool)})

    def forward_process(self, parts: Components) -> ForwardProcess:
        """Flow matching."""
        return FlowProcess(parts.schedule)

    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> NoiseSchedule | FlowSchedule:
        """Evenly spread, then shifted as the scheduler has it: by image size where it says so."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(parts.schedule.config)
        config = scheduler.config
        shift = calculate_shift(
            latent_shape[0] * latent_shape[1] // PATCH**2,
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=shift)
        return FlowSchedule(tuple(scheduler.sigmas.tolist()))


def _read_shift(vae: Any) -> float:
    return float(vae.config.shift_factor or 0.0)


def _mark(row: Conditioning) -> Conditioning:
    """With all of it attended to."""
    return Conditioning({**row.tensors, "is_attended": torch.ones_like(row["is_token"])})


def _pad(row: Conditioning, multiple: int) -> Conditioning:
    """With zeros, and False, to a multiple of so many tokens."""
    num_missing = -row["hidden"].shape[1] % multiple
    padded = {
        name: F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, num_missing))
        for name, tensor in row.tensors.items()
    }
    return Conditioning(padded)
