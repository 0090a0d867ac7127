"""What FLUX.1 computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of T5, D its width, P
CLIP's, l tokens of CLIP.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from dreambooth_ray.models.components import Components, load_scheduler
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.flux1_checks import PATCH
from dreambooth_ray.models.model_functions import ModelFunctions, TextForward
from dreambooth_ray.models.t5_text import tokenize_t5
from dreambooth_ray.objective.forward_process import FlowProcess, ForwardProcess
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseSchedule

_CLIP, _T5 = "text_encoder", "text_encoder_2"
# Of dev, and of schnell, by their authors.
_NUM_TOKENS, _SCHNELL_NUM_TOKENS = 512, 256
# What the denoiser is told in training: --guidance_scale of diffusers' script.
TRAINING_GUIDANCE = 3.5


class GuidedTransformer(nn.Module):
    """A transformer of tokens as a function of latents."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        hidden: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """x: (B, C, h, w), time: (B,) sigmas; returns (B, C, h, w).

        hidden: (B, L, D), pooled: (B, P), guidance: (B,) where it is embedded
        """
        patches = nn.functional.pixel_unshuffle(x, PATCH)
        rows, columns = patches.shape[-2:]
        velocity: Tensor = self.transformer(
            hidden_states=patches.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=time,
            guidance=guidance,
            img_ids=_make_positions(rows, columns, x.device),
            txt_ids=torch.zeros((hidden.shape[1], 3), dtype=torch.int64, device=x.device),
            return_dict=False,
        )[0]
        return nn.functional.pixel_shuffle(velocity.transpose(1, 2).reshape(patches.shape), PATCH)


def _make_positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows columns, 3) int64: (0, row, column) of each token."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in (1, rows, columns)))


class PooledClip(nn.Module):
    """CLIP's text encoder as a function from token ids to its pooled state."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, l) int64; returns (B, P)."""
        return torch.as_tensor(self.text_encoder(input_ids).pooler_output)


class T5Encoder(nn.Module):
    """T5's encoder as a function from token ids to its last hidden state."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, L) int64; returns (B, L, D)."""
        return torch.as_tensor(self.text_encoder(input_ids).last_hidden_state)


class Flux1Functions(ModelFunctions):
    """A conditioning is `hidden`, (B, L, D), `pooled`, (B, P), and `guidance`, (B,), of dev.

    Padding is part of `hidden`, and nothing masks it.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return FluxPipeline(
            scheduler=load_scheduler(directory, "FlowMatchEulerDiscreteScheduler"),
            vae=parts.vae,
            text_encoder=parts.text_encoders[_CLIP],
            tokenizer=parts.tokenizers["tokenizer"],
            text_encoder_2=parts.text_encoders[_T5],
            tokenizer_2=parts.tokenizers["tokenizer_2"],
            transformer=parts.denoiser,
        )

    # Images

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted and scaled as the VAE says."""
        posterior, factor = vae.encode(pixels).latent_dist, float(vae.config.scaling_factor)
        return (posterior.mean - _read_shift(vae)) * factor, posterior.std * factor

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

    # Text

    @property
    def _num_tokens(self) -> int:
        return _NUM_TOKENS if self.family.embeds_guidance else _SCHNELL_NUM_TOKENS

    def encode_prompt(
        self,
        parts: Components,
        encoders: Mapping[str, TextForward],
        prompt: str,
        clip_skip: int = 0,
    ) -> Conditioning:
        """T5 reads it whole; the pooled state is that of CLIP's first window, as diffusers has it.

        With the guidance of training, where it is embedded.
        """
        # On a GPU without room for it, T5 is on the host.
        devices = {name: encoder.device for name, encoder in parts.text_encoders.items()}
        ids = tokenize_t5(parts.tokenizers["tokenizer_2"], prompt, self._num_tokens)
        clip_ids = _tokenize_clip(parts.tokenizers["tokenizer"], [prompt])
        return self._condition(
            encoders[_T5](ids.to(devices[_T5])).last_hidden_state.to(devices[_CLIP]),
            encoders[_CLIP](clip_ids.to(devices[_CLIP])).pooler_output,
        )

    def _condition(self, hidden: Tensor, pooled: Tensor) -> Conditioning:
        conditioning = Conditioning({"hidden": hidden, "pooled": pooled})
        return self.tell_guidance(conditioning, TRAINING_GUIDANCE)

    def tell_guidance(self, conditioning: Conditioning, scale: float) -> Conditioning:
        """In place of the guidance of training."""
        if not self.family.embeds_guidance:
            return conditioning
        guidance = torch.full((len(conditioning),), scale, device=conditioning["hidden"].device)
        return Conditioning({**conditioning.tensors, "guidance": guidance})

    @torch.no_grad()
    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """CLIP's token ids, and what T5, which is frozen, encodes to: `input_ids` and `hidden`."""
        tokenizer, encoder = parts.tokenizers["tokenizer_2"], parts.text_encoders[_T5]
        encode = self.text_function(_T5, encoder)
        hidden = [
            encode(tokenize_t5(tokenizer, caption, self._num_tokens).to(encoder.device)).cpu()
            for caption in captions
        ]
        input_ids = _tokenize_clip(parts.tokenizers["tokenizer"], captions)
        return Conditioning({"input_ids": input_ids, "hidden": torch.cat(hidden)})

    def token_embedder(
        self, parts: Components, functions: Mapping[str, Callable[..., Any]]
    ) -> Callable[[Conditioning], Conditioning]:
        """As `encode_prompt`."""
        encode = functions[_CLIP]
        return lambda tokens: self._condition(tokens["hidden"], encode(tokens["input_ids"]))

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """To CLIP's pooled state, and to T5's last hidden one."""
        return PooledClip(encoder) if name == _CLIP else T5Encoder(encoder)

    # Denoiser

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return GuidedTransformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of any prompt."""
        config = parts.denoiser.config
        hidden = torch.empty(batch, self._num_tokens, int(config.joint_attention_dim))
        return self._condition(hidden, torch.empty(batch, int(config.pooled_projection_dim)))

    def embed_examples(
        self,
        parts: Components,
        functions: Mapping[str, Callable[..., Any]],
        conditioning: Conditioning,
    ) -> Conditioning:
        """Of one window of CLIP's token ids."""
        length = int(parts.text_encoders[_CLIP].config.max_position_embeddings)
        ids = torch.zeros((len(conditioning), length), dtype=torch.int64)
        return Conditioning({**conditioning.tensors, "pooled": functions[_CLIP](ids)})

    # Noise

    def forward_process(self, parts: Components) -> ForwardProcess:
        """Of the scheduler's levels, which are not shifted in training where images shift them."""
        return FlowProcess(parts.schedule)

    def noise_schedule(
        self, parts: Components, latent_shape: tuple[int, int], num_steps: int
    ) -> NoiseSchedule | FlowSchedule:
        """Shifted the more, the more tokens an image has; schnell's are evenly spread."""
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


def _tokenize_clip(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(B, l) ids of the first window of each."""
    ids: Tensor = tokenizer(
        list(prompts),
        return_tensors="pt",
        padding="max_length",
        max_length=int(tokenizer.model_max_length),
        truncation=True,
    ).input_ids
    return ids
