"""Captions that a model's family can't take whole: refused before work starts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import find_family

# More than a chat template puts around a message.
_NUM_MARKS = 32


class PromptLimitFunctions(ABC):
    """A second base class of the `ModelFunctions` of a family with `max_prompt_tokens`."""

    @abstractmethod
    def check_prompt(self, tokenizers: Mapping[str, Any], prompt: str) -> None:
        """raises: ConfigError for a prompt that `encode_prompt` can't take whole

        tokenizers: by the name of their folder
        """


def check_prompts(directory: Path, prompts: Iterable[tuple[str, str]]) -> None:
    """prompts: each with where it comes from, the setting or file to name

    raises: ConfigError naming that, the prompt and the limit
    """
    family = find_family(directory)
    if family.max_prompt_tokens is None:
        return
    # No token is less than a byte: of short ones there is nothing to count.
    short_prompt_bytes = family.max_prompt_tokens - _NUM_MARKS
    prompts_to_count = [
        (prompt_source, text)
        for prompt_source, text in prompts
        if len(text.encode()) > short_prompt_bytes
    ]
    if not prompts_to_count:
        return
    # Imported only here: it takes seconds.
    from dreambooth_ray.models.components import load_tokenizer  # noqa: PLC0415

    model_functions = family.load_functions()
    assert isinstance(model_functions, PromptLimitFunctions)  # ModelFunctions sees to it
    tokenizers = {
        part.tokenizer: load_tokenizer(directory, part.tokenizer, part.tokenizer_class)
        for part in family.text_encoders
    }
    for prompt_source, text in prompts_to_count:
        try:
            model_functions.check_prompt(tokenizers, text)
        except ConfigError as error:
            raise ConfigError(f"{prompt_source}: {error}") from error
