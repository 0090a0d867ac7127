"""Prompts through CLIP's text encoder: of any length, with weights, with layers left out.

A prompt that fits the encoder's window and has no weights goes through it as diffusers' pipelines
would send it. compel embeds the others: long ones in several windows, so that nothing is cut off
silently.

Legend: L the encoder's window in tokens, k windows of a prompt, D embedding width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth_ray.compat.compel import embed_fragments
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.model_functions import TextForward
from dreambooth_ray.models.prompt_weights import split_prompt

# Token ids (1, L) and an optional mask to embeddings (1, L, D).
EmbedForward = Callable[..., Tensor]


def embed_prompt(
    tokenizer: CLIPTokenizer, encoder: Any, forward: EmbedForward, prompt: str
) -> Tensor:
    """(1, k L, D) in the encoder's dtype, on its device.

    encoder: for its device and its size; forward: what is called in its place
    """
    prompt_fragments = split_prompt(prompt)
    is_unweighted = len(prompt_fragments) == 1 and prompt_fragments[0][1] == 1.0
    if is_unweighted and _fits_window(tokenizer, prompt_fragments[0][0]):
        return forward(_tokenize_padded(tokenizer, prompt_fragments[0][0]).to(encoder.device))
    return embed_fragments(tokenizer, encoder, forward, prompt_fragments)


def _fits_window(tokenizer: CLIPTokenizer, text: str) -> bool:
    return len(tokenizer(text).input_ids) <= int(tokenizer.model_max_length)


def _tokenize_padded(tokenizer: CLIPTokenizer, prompt: str) -> Tensor:
    token_ids: Tensor = tokenizer(
        prompt, padding="max_length", max_length=int(tokenizer.model_max_length),
        return_tensors="pt",
    ).input_ids  # fmt: skip
    return token_ids


def pad_windows(
    first: Conditioning, second: Conditioning, empty: Callable[[], Conditioning]
) -> tuple[Conditioning, Conditioning]:
    """Both with `hidden` (1, k L, D) of one length: the shorter ends in empty windows.

    empty: gives the empty prompt's conditioning, whose `hidden` is one window
    """
    longest_length = max(first["hidden"].shape[1], second["hidden"].shape[1])
    return _append_empty_windows(first, longest_length, empty), _append_empty_windows(
        second, longest_length, empty
    )


def _append_empty_windows(
    conditioning: Conditioning, length: int, empty: Callable[[], Conditioning]
) -> Conditioning:
    hidden = conditioning["hidden"]
    if hidden.shape[1] == length:
        return conditioning
    empty_window = empty()["hidden"]
    padding_windows = [empty_window] * ((length - hidden.shape[1]) // empty_window.shape[1])
    return Conditioning(
        {**conditioning.tensors, "hidden": torch.cat([hidden, *padding_windows], dim=1)}
    )


def make_clip_skip_forward(encoder: Any, forward: TextForward, clip_skip: int) -> EmbedForward:
    """Token ids (1, L) and an optional mask to the last hidden state (1, L, D), or an earlier one.

    encoder: whose final norm goes over an earlier one; forward: what is called in its place
    raises: ConfigError if no layer would be left
    """
    check_clip_skip(clip_skip, encoder)

    def embed_token_ids(ids: Tensor, mask: Tensor | None = None) -> Tensor:
        encoder_outputs = forward(ids, mask, output_hidden_states=bool(clip_skip))
        if not clip_skip:
            return torch.as_tensor(encoder_outputs.last_hidden_state)
        return torch.as_tensor(
            _find_final_norm(encoder)(encoder_outputs.hidden_states[-1 - clip_skip])
        )

    return embed_token_ids


def strip_prompt_weights(prompt: str) -> str:
    """The text of a prompt alone."""
    return " ".join(text for text, _ in split_prompt(prompt))


def check_clip_skip(clip_skip: int, encoder: Any, left_out: int = 0) -> None:
    """raises ConfigError if no layer would be left. left_out: layers that the family leaves out"""
    num_layers = int(encoder.config.num_hidden_layers)
    if clip_skip + left_out >= num_layers:
        raise ConfigError(
            f"clip_skip={clip_skip} leaves nothing of a text encoder of {num_layers} layers"
        )


def _find_final_norm(encoder: Any) -> Callable[[Tensor], Any]:
    """The text model's last layer norm, under any wrapper."""
    for name, module in encoder.named_modules():
        if name.endswith("final_layer_norm"):
            return module  # type: ignore[no-any-return]
    raise ConfigError("clip_skip needs a text encoder with a final layer norm, as CLIP's has")
