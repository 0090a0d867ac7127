"""Prompts as Qwen's pipelines of images put them: behind an instruction to describe an image."""

from typing import Any

from torch import Tensor

from dreambooth_ray.errors import ConfigError

# As QwenImagePipeline and Krea2Pipeline have it; what stands before the prompt is dropped.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
NUM_DROPPED = 34


def tokenize_qwen_vl_prompt(tokenizer: Any, prompt: str, max_tokens: int) -> Tensor:
    """(1, 34 + L) ids, of which the first 34 are to be dropped.

    max_tokens: of the prompt and the marks behind it
    raises: ConfigError for a prompt that is longer
    """
    token_ids: Tensor = tokenizer(TEMPLATE.format(prompt), return_tensors="pt").input_ids
    num_tokens = token_ids.shape[1] - NUM_DROPPED
    if num_tokens > max_tokens:
        raise ConfigError(
            f"the prompt {prompt[:40]!r}... takes {num_tokens} tokens, with the marks of its "
            f"message, and the model reads {max_tokens}; shorten it"
        )
    return token_ids
