"""Prompts as T5's token ids."""

from typing import Any

from torch import Tensor

from dreambooth_ray.errors import ConfigError


def tokenize_t5(tokenizer: Any, prompt: str, num_tokens: int) -> Tensor:
    """(1, num_tokens) token ids of a prompt, padded; raises: ConfigError for one that is longer"""
    token_ids: Tensor = tokenizer(
        prompt, return_tensors="pt", padding="max_length", max_length=num_tokens
    ).input_ids
    if token_ids.shape[1] > num_tokens:
        raise ConfigError(
            f"the prompt {prompt[:40]!r}... takes {token_ids.shape[1]} tokens, and the model reads "
            f"{num_tokens}; shorten it"
        )
    return token_ids
