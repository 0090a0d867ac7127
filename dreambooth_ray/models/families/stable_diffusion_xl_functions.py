"""What Stable Diffusion XL computes.

Legend: B batch, C latent channels, h, w latent sides, k windows of a text, L tokens of a window,
D embedding width of both encoders together, P width of the pooled embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from dreambooth_ray.models import clip_text
from dreambooth_ray.models.clip_unet_functions import ClipUNetFunctions, token_ids_name
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import EncodePrompt, TextForward, TextForwards
from dreambooth_ray.models.network_functions import (
    PENULTIMATE,
    NetworkFunction,
    PenultimateEncoder,
    PooledEncoder,
)
from dreambooth_ray.models.prompt_windows import (
    embed_pooled_windows,
    embed_windows,
    tokenize_windows,
)
from dreambooth_ray.models.text_training import TextFunctions

_FIRST, _SECOND = "text_encoder", "text_encoder_2"


class TraceableSDXLUNet(NetworkFunction):
    """A UNet that is told of sizes and of a pooled prompt, as a function of tensors."""

    def forward(
        self, x: Tensor, time: Tensor, hidden: Tensor, pooled: Tensor, time_ids: Tensor
    ) -> Tensor:
        """x: (B, C, h, w), time: (B,), hidden: (B, k L, D), pooled: (B, P), time_ids: (B, 6).

        returns (B, C, h, w)
        """
        added_conditions = {"text_embeds": pooled, "time_ids": time_ids}
        network_output = self.network(
            x, time, hidden, added_cond_kwargs=added_conditions, return_dict=False
        )
        return torch.as_tensor(network_output[0])


class StableDiffusionXLFunctions(ClipUNetFunctions):
    """A UNet that is told of two text encoders' states, a pooled embedding and sizes."""

    scheduler_class = "EulerDiscreteScheduler"

    def build_pipeline(self, parts: Components, directory: Path) -> DiffusionPipeline:
        """Without a watermark."""
        return StableDiffusionXLPipeline(
            **self.pipeline_parts(parts, directory),
            force_zeros_for_empty_prompt=_zeroes_empty_prompt(parts),
            add_watermarker=False,
        )

    # Text

    def make_clip_skip_forward(
        self, encoder: Any, forward: TextForward, clip_skip: int
    ) -> clip_text.EmbedForward:
        """The penultimate hidden state, or an earlier one, without the final norm."""
        clip_text.check_clip_skip(clip_skip, encoder, self.family.layers_left_out)

        def embed_token_ids(ids: Tensor, mask: Tensor | None = None) -> Tensor:
            hidden_states = forward(ids, mask, output_hidden_states=True).hidden_states
            return torch.as_tensor(hidden_states[PENULTIMATE - clip_skip])

        return embed_token_ids

    def encode_prompt(
        self, parts: Components, encoders: TextForwards, prompt: str, clip_skip: int = 0
    ) -> Conditioning:
        """`hidden` of all windows; `pooled` of the first one, without weights, as compel has it."""
        tokenizer, device = parts.tokenizers["tokenizer_2"], parts.text_encoders[_SECOND].device
        windows = tokenize_windows(tokenizer, [clip_text.strip_prompt_weights(prompt)])
        first_window = windows.flatten(0, -2)[:1].to(device)
        return Conditioning(
            {
                "hidden": self.embed_text(parts, encoders, prompt, clip_skip),
                "pooled": encoders[_SECOND](first_window, None).text_embeds,
            }
        )

    def encode_pair(
        self, parts: Components, encode: EncodePrompt, prompts: tuple[str, str], clip_skip: int
    ) -> tuple[Conditioning, Conditioning]:
        """No negative prompt is zeros where the model was trained so; clip_skip is none of its.

        Both as in diffusers' pipeline.
        """
        prompt, negative_prompt = prompts
        conditioning = encode(prompt, clip_skip)
        if not negative_prompt and _zeroes_empty_prompt(parts):
            zeros = {
                tensor_name: torch.zeros_like(tensor)
                for tensor_name, tensor in conditioning.tensors.items()
            }
            return conditioning, Conditioning(zeros)
        return clip_text.pad_windows(
            conditioning, encode(negative_prompt, 0), lambda: encode("", 0)
        )

    def make_token_encoder(
        self, parts: Components, functions: TextFunctions
    ) -> Callable[[Conditioning], Conditioning]:
        """As `encode_prompt`, without clip_skip."""
        first_encoder, second_encoder = self.family.text_encoders
        first_end_id, second_end_id = (
            int(parts.tokenizers[encoder_part.tokenizer].eos_token_id)
            for encoder_part in (first_encoder, second_encoder)
        )

        def embed_tokens(tokens: Conditioning) -> Conditioning:
            first_ids, second_ids = (
                tokens[token_ids_name(first_encoder)],
                tokens[token_ids_name(second_encoder)],
            )
            hidden = embed_windows(functions[first_encoder.name], first_ids, first_end_id)
            second_hidden, pooled = embed_pooled_windows(
                functions[second_encoder.name], second_ids, second_end_id
            )
            return Conditioning(
                {"hidden": torch.cat([hidden, second_hidden], dim=-1), "pooled": pooled}
            )

        return embed_tokens

    def text_function(self, name: str, encoder: nn.Module) -> nn.Module:
        """The second gives the pooled embedding too."""
        return PooledEncoder(encoder) if name == _SECOND else PenultimateEncoder(encoder)

    def unused_layers(self, name: str, encoder: Any) -> tuple[str, ...]:
        """Of the first, what lies behind its penultimate state; the second's is pooled."""
        if name != _FIRST:
            return ()
        last_layer_index = int(encoder.config.num_hidden_layers) - 1
        unused_layer_suffixes = (f"encoder.layers.{last_layer_index}", "final_layer_norm")
        return tuple(
            name for name, _ in encoder.named_modules() if name.endswith(unused_layer_suffixes)
        )

    def add_frames(self, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """With `time_ids`: original size, corner of what was cut out, and its size, as they are."""
        time_ids = frames.to(conditioning["hidden"].device)
        return Conditioning({**conditioning.tensors, "time_ids": time_ids})

    # Denoiser

    def denoiser_function(self, denoiser: nn.Module) -> nn.Module:
        """Of latents, timesteps, `hidden`, `pooled` and `time_ids`."""
        return TraceableSDXLUNet(denoiser)

    def example_conditioning(self, parts: Components, batch: int, side_px: int) -> Conditioning:
        """Of one window."""
        encoder_configs = [encoder.config for encoder in parts.text_encoders.values()]
        text_width, num_tokens = (
            sum(c.hidden_size for c in encoder_configs),
            encoder_configs[0].max_position_embeddings,
        )
        return Conditioning(
            {
                "hidden": torch.empty(batch, num_tokens, text_width),
                "pooled": torch.empty(batch, encoder_configs[1].projection_dim),
                "time_ids": torch.full((batch, 6), side_px),
            }
        )

    def encode_dummy_tokens(
        self, parts: Components, functions: TextFunctions, conditioning: Conditioning
    ) -> Conditioning:
        """Of one window of token ids."""
        token_ids = torch.zeros(conditioning["hidden"].shape[:2], dtype=torch.int64)
        hidden, pooled = functions[_SECOND](token_ids)
        hidden = torch.cat([functions[_FIRST](token_ids), hidden], dim=-1)
        return Conditioning({**conditioning.tensors, "hidden": hidden, "pooled": pooled})


def _zeroes_empty_prompt(parts: Components) -> bool:
    return bool(parts.settings.get("force_zeros_for_empty_prompt", True))
