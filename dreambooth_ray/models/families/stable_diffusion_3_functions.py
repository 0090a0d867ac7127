"""What Stable Diffusion 3 and 3.5 compute.

Legend: B batch, C latent channels, h, w latent sides, H, W pixels, k windows of a text, L tokens
of a window, T tokens of T5, D width of the text that the transformer takes, P width of both
pooled embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.families.stable_diffusion_3 import T5, T5_TOKENS
from dreambooth_ray.models.flow_functions import FlowFunctions
from dreambooth_ray.models.model_functions import TextForward, TextForwards
from dreambooth_ray.models.network_functions import PENULTIMATE, NetworkFunction, PooledEncoder
from dreambooth_ray.models.prompt_limits import PromptLimitFunctions
from dreambooth_ray.models.prompt_windows import (
    embed_pooled_windows,
    limit_window_lengths,
    tokenize_windows,
)
from dreambooth_ray.models.t5_tokens import tokenize_t5
from dreambooth_ray.models.text_training import TextFunctions, TextTraining
from dreambooth_ray.objective.forward_process import FlowProcess, ForwardProcess

_CLIP = ("text_encoder", "text_encoder_2")
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", T5: "tokenizer_3"}
# What the transformer's times count to.
_TIMESTEPS = 1000


class TraceableSD3Transformer(NetworkFunction):
    """A transformer of timesteps as a function of sigmas."""

    def forward(self, x: Tensor, time: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
        """x: (B, C, h, w), time: (B,) sigmas, hidden: (B, k L + T, D), pooled: (B, P).

        returns (B, C, h, w)
        """
        network_output = self.network(
            hidden_states=x,
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            timestep=time * _TIMESTEPS,
            return_dict=False,
        )
        return torch.as_tensor(network_output[0])


class StableDiffusion3Functions(FlowFunctions, TextTraining, PromptLimitFunctions):
    """A conditioning is `hidden`, (B, k L + T, D), and `pooled`, (B, P).

    CLIP's windows come first, then T5's tokens: zeros where a directory has no T5.
    """

    spaces_evenly = False

    # Loading

    def load(self, directory: Path) -> Components:
        """As `ModelFunctions.load`; tokens of a window are as many as CLIP has places."""
        return limit_window_lengths(super().load(directory))

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """Without T5 where the parts have none."""
        all_parts = dict.fromkeys((*_TOKENIZERS, *_TOKENIZERS.values()))
        all_parts |= self.pipeline_parts(parts, directory)
        return StableDiffusion3Pipeline(**all_parts)

    # Images

    def patch_side(self, parts: Components) -> int:
        """The transformer's."""
        return int(parts.denoiser.config.patch_size)

    def default_side(self, parts: Components) -> int:
        """The transformer's sample_size."""
        return parts.latent_factor * int(parts.denoiser.config.sample_size)

    def max_side(self, parts: Components) -> int:
        """The transformer has places for so many patches each way."""
        return self.size_multiple(parts) * int(parts.denoiser.config.pos_embed_max_size)

    # Text

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """CLIP's windows as in training; T5 takes the prompt whole, or not at all."""
        tokenized_prompt = self._tokenize(parts, encoders, [prompt])
        pooled_encoders = {
            encoder_name: _make_states_and_pooled_encoder(encoders[encoder_name])
            for encoder_name in _CLIP
        }
        return self.make_token_encoder(parts, pooled_encoders)(
            tokenized_prompt.to(_find_encoder_device(parts))
        )

    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """As `PromptLimitFunctions.check_prompt`: by T5, where there is one."""
        tokenize_t5(tokenizers[_TOKENIZERS[T5]], prompt, T5_TOKENS)

    def tokenize(self, parts: Components, captions: Sequence[str]) -> Conditioning:
        """CLIP's ids, (B, L) where every caption fits one window, else (B, k, L), and T5's states.

        T5 is not trained, so its states, `t5`, stay what they are.
        """
        return self._tokenize(parts, parts.text_forward_functions, captions)

    @torch.no_grad()
    def _tokenize(
        self, parts: Components, encoders: TextForwards, captions: Sequence[str]
    ) -> Conditioning:
        clip_ids = {
            encoder_name: tokenize_windows(
                parts.tokenizers[_TOKENIZERS[encoder_name]], list(captions)
            )
            for encoder_name in _CLIP
        }
        if T5 in encoders:
            # One by one: none depends on its neighbours.
            t5_states = [_embed_by_t5(parts, encoders[T5], caption) for caption in captions]
            return Conditioning({**clip_ids, "t5": torch.cat(t5_states)})
        text_width = int(parts.denoiser.config.joint_attention_dim)
        return Conditioning({**clip_ids, "t5": torch.zeros(len(captions), T5_TOKENS, text_width)})

    def make_token_encoder(
        self, parts: Components, functions: TextFunctions
    ) -> Callable[[Conditioning], Conditioning]:
        """CLIP's part, before that of T5."""
        end_ids = [
            int(parts.tokenizers[_TOKENIZERS[encoder_name]].eos_token_id) for encoder_name in _CLIP
        ]

        def embed_tokens(tokens: Conditioning) -> Conditioning:
            embeddings = [
                embed_pooled_windows(functions[encoder_name], tokens[encoder_name], end_id)
                for encoder_name, end_id in zip(_CLIP, end_ids, strict=True)
            ]
            return _join_encoder_states(embeddings, tokens["t5"])

        return embed_tokens

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """Of one of CLIP's."""
        return PooledEncoder(encoder)

    def encode_dummy_tokens(
        self, parts: Components, functions: TextFunctions, conditioning: Conditioning
    ) -> Conditioning:
        """Of one window of token ids."""
        clip_window_length = conditioning["hidden"].shape[1] - T5_TOKENS
        clip_ids = torch.zeros(len(conditioning), clip_window_length, dtype=torch.int64)
        return _join_encoder_states(
            [functions[encoder_name](clip_ids) for encoder_name in _CLIP],
            conditioning["hidden"][:, clip_window_length:],
        )

    # Denoiser and noise

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, sigmas, `hidden` and `pooled`."""
        return TraceableSD3Transformer(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of one window of CLIP's."""
        num_tokens = int(parts.text_encoder.config.max_position_embeddings) + T5_TOKENS
        config = parts.denoiser.config
        return Conditioning(
            {
                "hidden": torch.empty(batch, num_tokens, int(config.joint_attention_dim)),
                "pooled": torch.empty(batch, int(config.pooled_projection_dim)),
            }
        )

    def forward_process(self, parts: Components) -> ForwardProcess:
        """Of the scheduler's levels; errors are those of the image, as diffusers' script has it."""
        return FlowProcess(parts.schedule, preconditions=True)


def _find_encoder_device(parts: Components) -> torch.device:
    device: torch.device = parts.text_encoder.device
    return device


def _make_states_and_pooled_encoder(
    forward: TextForward,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """As `PooledEncoder`, of what is called in an encoder's place."""

    def embed_states_and_pooled(ids: Tensor) -> tuple[Tensor, Tensor]:
        encoder_outputs = forward(ids, None, output_hidden_states=True)
        return encoder_outputs.hidden_states[PENULTIMATE], encoder_outputs.text_embeds

    return embed_states_and_pooled


def _embed_by_t5(parts: Components, forward: TextForward, caption: str) -> Tensor:
    """(1, T, D) on the CPU; padding is not masked. raises ConfigError for one that is longer"""
    t5_ids = tokenize_t5(parts.tokenizers[_TOKENIZERS[T5]], caption, T5_TOKENS)
    # On a GPU without room for it, T5 is on the host.
    t5_states: Tensor = forward(t5_ids.to(parts.text_encoders[T5].device)).last_hidden_state
    return t5_states.cpu()


def _join_encoder_states(clip: Sequence[tuple[Tensor, Tensor]], t5: Tensor) -> Conditioning:
    """The states of both side by side, filled up with zeros to T5's width, before T5's."""
    clip_states = torch.cat([states for states, _ in clip], dim=-1)
    clip_states = nn.functional.pad(clip_states, (0, t5.shape[-1] - clip_states.shape[-1]))
    return Conditioning(
        {
            "hidden": torch.cat([clip_states, t5.to(clip_states.dtype)], dim=1),
            "pooled": torch.cat([pooled for _, pooled in clip], dim=-1),
        }
    )
