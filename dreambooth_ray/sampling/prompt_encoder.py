"""Prompts to embeddings: of any length, with weights, with any text adapter.

Legend: L the encoder's window in tokens, k chunks of it, D embedding width.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_ray.compat.compel import embed_fragments
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.precision import autocast_mixed, has_mixed_dtypes
from dreambooth_ray.sampling.denoiser import AdaptedNetwork
from dreambooth_ray.sampling.prompt_weights import split_prompt

_CACHE_SIZE = 256


class PromptEncoder:
    """Embeds prompts, each once.

    A prompt that fits the window and has no weights goes through the encoder as diffusers'
    pipeline would send it. compel embeds the others: long ones in several windows, so that
    nothing is cut off silently.
    """

    def __init__(self, tokenizer: CLIPTokenizer, adapted: AdaptedNetwork) -> None:
        """adapted: the text encoder, with its LoRAs."""
        self.tokenizer, self._adapted = tokenizer, adapted
        self._cache: OrderedDict[tuple[str, int, str | None], Tensor] = OrderedDict()

    def clear_cache(self) -> None:
        """Drop all embeddings, because weights have changed."""
        self._cache.clear()

    @torch.no_grad()
    def encode(self, prompt: str, clip_skip: int = 0, adapter: str | None = None) -> Tensor:
        """(1, k L, D) in the encoder's dtype, on its device.

        clip_skip: layers left out at the end
        adapter:   peft adapter of the encoder, None for none
        """
        key = (prompt, clip_skip, adapter)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        forward = self._build_forward(clip_skip, adapter)
        parts = split_prompt(prompt)
        plain_text = parts[0][0] if len(parts) == 1 and parts[0][1] == 1.0 else None
        if plain_text is not None and self._fits_window(plain_text):
            embedded = forward(self._tokenize_padded(plain_text))
        else:
            embedded = embed_fragments(self.tokenizer, self._adapted.network, forward, parts)
        self._cache[key] = embedded
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return embedded

    def encode_pair(
        self, prompt: str, negative_prompt: str, clip_skip: int = 0, adapter: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of both, of one length: the shorter ends in windows of the empty prompt."""
        embeds = [self.encode(text, clip_skip, adapter) for text in (prompt, negative_prompt)]
        longest = max(e.shape[1] for e in embeds)
        if any(e.shape[1] < longest for e in embeds):
            empty = self.encode("", clip_skip, adapter)
            embeds = [
                torch.cat([e] + [empty] * ((longest - e.shape[1]) // empty.shape[1]), dim=1)
                for e in embeds
            ]
        return embeds[0], embeds[1]

    @property
    def _window(self) -> int:
        return int(self.tokenizer.model_max_length)

    def _fits_window(self, text: str) -> bool:
        return len(self.tokenizer(text).input_ids) <= self._window

    def _tokenize_padded(self, prompt: str) -> Tensor:
        ids: Tensor = self.tokenizer(
            prompt, padding="max_length", max_length=self._window, return_tensors="pt"
        ).input_ids
        return ids.to(self._adapted.network.device)

    def _build_forward(self, clip_skip: int, adapter: str | None) -> Callable[..., Tensor]:
        """A function of token ids (1, L) and an optional mask to embeddings (1, L, D)."""
        check_clip_skip(clip_skip, self._adapted.network)
        is_mixed = has_mixed_dtypes(self._adapted.network)

        def forward(ids: Tensor, mask: Tensor | None = None) -> Tensor:
            with autocast_mixed(self._adapted.network) if is_mixed else nullcontext():
                out = self._adapted(
                    ids,
                    attention_mask=mask,
                    output_hidden_states=bool(clip_skip),
                    adapters=[adapter],
                )
            if not clip_skip:
                return _as_tensor(out.last_hidden_state)
            norm = _find_final_norm(self._adapted.network)
            return _as_tensor(norm(out.hidden_states[-1 - clip_skip]))

        return forward


def check_clip_skip(clip_skip: int, encoder: CLIPTextModel) -> None:
    """raises ConfigError if no layer would be left."""
    layers = int(encoder.config.num_hidden_layers)
    if clip_skip >= layers:
        raise ConfigError(
            f"clip_skip={clip_skip} leaves nothing of a text encoder of {layers} layers"
        )


def _as_tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _find_final_norm(encoder: Any) -> Callable[[Tensor], Any]:
    """The text model's last layer norm, under any wrapper."""
    for name, part in encoder.named_modules():
        if name.endswith("final_layer_norm"):
            return part  # type: ignore[no-any-return]
    raise ConfigError("clip_skip needs a text encoder with a final layer norm, as CLIP's has")
