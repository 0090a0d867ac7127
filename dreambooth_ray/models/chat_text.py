"""Prompts as messages to a chat model, whose hidden states a denoiser is told."""

from typing import Any

from torch import Tensor

from dreambooth_ray.errors import ConfigError


def tokenize_chat(
    tokenizer: Any, prompt: str, num_tokens: int, *, thinks: bool
) -> tuple[Tensor, Tensor]:
    """(1, num_tokens) token ids of a message of one user, padded, and their mask.

    thinks: whether the answer that is asked for may begin with reasoning
    raises: ConfigError for a prompt that is longer
    """
    templated_chat_text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinks,
    )
    return tokenize_templated_text(tokenizer, prompt, templated_chat_text, num_tokens)


def tokenize_templated_text(
    tokenizer: Any, prompt: str, text: str, num_tokens: int, *, add_special_tokens: bool = True
) -> tuple[Tensor, Tensor]:
    """(1, num_tokens) token ids of the text that a template made of a prompt, and their mask.

    raises: ConfigError for a prompt whose text is longer
    """
    tokenized = tokenizer(
        text,
        return_tensors="pt",
        padding="max_length",
        max_length=num_tokens,
        add_special_tokens=add_special_tokens,
    )
    token_ids: Tensor = tokenized["input_ids"]
    if token_ids.shape[1] > num_tokens:
        raise ConfigError(
            f"the prompt {prompt[:40]!r}... takes {token_ids.shape[1]} tokens, with the marks of "
            f"its message, and the model reads {num_tokens}; shorten it"
        )
    return token_ids, tokenized["attention_mask"]
