"""What FLUX.1 computes.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, L tokens of T5, D its width, P
CLIP's, l tokens of CLIP.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor, nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.flux1_checks import MAX_TOKENS, PATCH, SCHNELL_MAX_TOKENS
from dreambooth_ray.models.flow_functions import TRAINING_GUIDANCE, FlowFunctions
from dreambooth_ray.models.model_functions import TextForwards
from dreambooth_ray.models.network_functions import LastStateEncoder, NetworkFunction
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.t5_tokens import tokenize_t5
from dreambooth_ray.models.text_training import TextFunctions, TextTraining

_CLIP, _T5 = "text_encoder", "text_encoder_2"


class TraceableFlux1Transformer(NetworkFunction):
    """A transformer of tokens as a function of latents."""

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
        num_rows, num_columns = patches.shape[-2:]
        velocity: Tensor = self.network(
            hidden_states=patches.flatten(2).transpose(1, 2),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=time,
            guidance=guidance,
            img_ids=make_image_positions(num_rows, num_columns, x.device),
            txt_ids=torch.zeros((hidden.shape[1], 3), dtype=torch.int64, device=x.device),
            return_dict=False,
        )[0]
        return nn.functional.pixel_shuffle(velocity.transpose(1, 2).reshape(patches.shape), PATCH)


def make_image_positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows columns, 3) int64: (0, row, column) of each token."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in (1, rows, columns)))


class PooledClip(NetworkFunction):
    """CLIP's text encoder as a function from token ids to its pooled state."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: (B, l) int64; returns (B, P)."""
        return torch.as_tensor(self.network(input_ids).pooler_output)


class Flux1Functions(FlowFunctions, TextTraining, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, L, D), `pooled`, (B, P), and `guidance`, (B,), of dev.

    Padding is part of `hidden`, and nothing masks it.
    """

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """As `ModelFunctions.build_pipeline`."""
        return FluxPipeline(**self.pipeline_parts(parts, directory))

    def patch_side(self, parts: Components) -> int:
        """Of all FLUX.1."""
        return PATCH

    # Text

    @property
    def _max_t5_tokens(self) -> int:
        return MAX_TOKENS if self.family.embeds_guidance else SCHNELL_MAX_TOKENS

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """T5 reads it whole; the pooled state is that of CLIP's first window, as diffusers has it.

        With the guidance of training, where it is embedded.
        """
        # On a GPU without room for it, T5 is on the host.
        encoder_devices = {
            encoder_name: encoder.device for encoder_name, encoder in parts.text_encoders.items()
        }
        t5_ids = tokenize_t5(parts.tokenizers["tokenizer_2"], prompt, self._max_t5_tokens)
        clip_ids = _tokenize_clip(parts.tokenizers["tokenizer"], [prompt])
        return self._make_conditioning(
            encoders[_T5](t5_ids.to(encoder_devices[_T5])).last_hidden_state.to(
                encoder_devices[_CLIP]
            ),
            encoders[_CLIP](clip_ids.to(encoder_devices[_CLIP])).pooler_output,
        )

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`: by T5."""
        tokenize_t5(tokenizers["tokenizer_2"], prompt, self._max_t5_tokens)

    def _make_conditioning(self, hidden: Tensor, pooled: Tensor) -> Conditioning:
        conditioning = Conditioning({"hidden": hidden, "pooled": pooled})
        return self.tell_guidance(conditioning, TRAINING_GUIDANCE)

    @torch.no_grad()
    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """CLIP's token ids, and what T5, which is frozen, encodes to: `input_ids` and `hidden`."""
        tokenizer, encoder = parts.tokenizers["tokenizer_2"], parts.text_encoders[_T5]
        encode_t5 = self.text_function(_T5, encoder)
        t5_states = [
            encode_t5(tokenize_t5(tokenizer, caption, self._max_t5_tokens).to(encoder.device)).cpu()
            for caption in captions
        ]
        clip_ids = _tokenize_clip(parts.tokenizers["tokenizer"], captions)
        return Conditioning({"input_ids": clip_ids, "hidden": torch.cat(t5_states)})

    def make_token_encoder(
        self, parts: Components, functions: TextFunctions
    ) -> Callable[[Conditioning], Conditioning]:
        """As `encode_prompt`."""
        encode_clip = functions[_CLIP]
        return lambda tokens: self._make_conditioning(
            tokens["hidden"], encode_clip(tokens["input_ids"])
        )

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """To CLIP's pooled state, and to T5's last hidden one."""
        return PooledClip(encoder) if name == _CLIP else LastStateEncoder(encoder)

    # Denoiser

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas and the tensors of a conditioning."""
        return TraceableFlux1Transformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of any prompt."""
        config = parts.denoiser.config
        hidden = torch.empty(batch, self._max_t5_tokens, int(config.joint_attention_dim))
        return self._make_conditioning(
            hidden, torch.empty(batch, int(config.pooled_projection_dim))
        )

    def encode_dummy_tokens(
        self, parts: Components, functions: TextFunctions, conditioning: Conditioning
    ) -> Conditioning:
        """Of one window of CLIP's token ids."""
        clip_window_length = int(parts.text_encoders[_CLIP].config.max_position_embeddings)
        clip_ids = torch.zeros((len(conditioning), clip_window_length), dtype=torch.int64)
        return Conditioning({**conditioning.tensors, "pooled": functions[_CLIP](clip_ids)})


def _tokenize_clip(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(B, l) ids of the first window of each."""
    token_ids: Tensor = tokenizer(
        list(prompts),
        return_tensors="pt",
        padding="max_length",
        max_length=int(tokenizer.model_max_length),
        truncation=True,
    ).input_ids
    return token_ids
