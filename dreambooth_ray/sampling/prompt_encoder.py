"""Prompts to what the denoiser is told: each encoded once, with any text adapter."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.precision import autocast_mixed, has_mixed_dtypes
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.request import Request

_CACHE_SIZE = 256


class PromptEncoder:
    """Encodes prompts as the model's family has it."""

    def __init__(self, parts: Components, adapted: dict[str, AdaptedNetwork]) -> None:
        """adapted: the text encoders with their LoRAs, by name"""
        self._parts, self._adapted = parts, adapted
        self._cache: OrderedDict[tuple[str, int, AdapterMix, bool], Conditioning] = OrderedDict()

    def clear_cache(self) -> None:
        """Drop what was encoded, because weights have changed."""
        self._cache.clear()

    @torch.no_grad()
    def encode(
        self,
        prompt: str,
        clip_skip: int = 0,
        adapters: AdapterMix = (),
        *,
        is_negative: bool = False,
    ) -> Conditioning:
        """One row, in the encoders' dtype, on their device.

        clip_skip: layers left out at the end
        adapters:  of the text encoders
        is_negative: whether it is to be avoided
        """
        cache_key = (prompt, clip_skip, adapters, is_negative)
        if cache_key in self._cache:
            self._cache.move_to_end(cache_key)
            return self._cache[cache_key]
        encoder_forwards = {
            encoder_name: _bind_encoder_adapters(adapted, adapters)
            for encoder_name, adapted in self._adapted.items()
        }
        model_functions = self._parts.functions
        encode_function = (
            model_functions.encode_negative_prompt if is_negative else model_functions.encode_prompt
        )
        conditioning = encode_function(self._parts, encoder_forwards, prompt, clip_skip)
        self._cache[cache_key] = conditioning
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return conditioning

    def encode_request_prompts(
        self, request: Request, frames: Tensor
    ) -> tuple[Conditioning, Conditioning | None]:
        """Of the prompt and, where guidance needs it, of the negative prompt, one row each.

        frames: (1, 6) int64 of `ImageFrame`
        """
        model_functions, clip_skip = self._parts.functions, request.params.clip_skip
        if model_functions.family.embeds_guidance:
            prompt_conditioning = self.encode(request.prompt, clip_skip, request.adapters)
            conditioning_with_guidance = model_functions.tell_guidance(
                prompt_conditioning, request.params.guidance_scale
            )
            return model_functions.add_frames(conditioning_with_guidance, frames), None
        positive_conditioning, negative_conditioning = self.encode_pair(
            request.prompt, request.negative_prompt, clip_skip, request.adapters
        )
        return model_functions.add_frames(
            positive_conditioning, frames
        ), model_functions.add_frames(negative_conditioning, frames)

    def encode_pair(
        self, prompt: str, negative_prompt: str, clip_skip: int = 0, adapters: AdapterMix = ()
    ) -> tuple[Conditioning, Conditioning]:
        """Of both, so that they can share a forward where their lengths differ."""

        def encode(prompt: str, clip_skip: int, *, is_negative: bool = False) -> Conditioning:
            return self.encode(prompt, clip_skip, adapters, is_negative=is_negative)

        return self._parts.functions.encode_pair(
            self._parts, encode, (prompt, negative_prompt), clip_skip
        )


def _bind_encoder_adapters(adapted: AdaptedNetwork, adapters: AdapterMix) -> Callable[..., Any]:
    """A text encoder as `ModelFunctions.encode_prompt` takes it."""
    is_mixed_precision = has_mixed_dtypes(adapted.network)

    def forward(ids: Tensor, mask: Tensor | None = None, output_hidden_states: bool = False) -> Any:
        with autocast_mixed(adapted.network) if is_mixed_precision else nullcontext():
            return adapted(
                ids,
                attention_mask=mask,
                output_hidden_states=output_hidden_states,
                adapters=[adapters],
            )

    return forward
