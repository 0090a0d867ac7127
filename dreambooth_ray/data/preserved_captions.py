"""Captions under which the base model's output is kept: those without an identifier."""

import re

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.errors import DataError


def strip_word(caption: str, word: str) -> str:
    """A caption with a word taken out wherever it stands alone, in whatever case.

    "a photo of a sks dog, in snow" is "a photo of a dog, in snow" without sks.
    """
    # Not \b: a learned word begins and ends with what is no letter.
    alone = rf"(?<!\w){re.escape(word)}(?!\w)-?"
    words = " ".join(re.sub(alone, " ", caption, flags=re.IGNORECASE).split())
    # Commas that stood around it.
    return re.sub(r"\s*([,.;:!?])(\s*,)*", r"\1", words).strip(" ,")


def preserved_captions(config: Config, subject: SubjectConfig, caption: str) -> tuple[str, ...]:
    """The captions, one at random a step, that go with an image of a caption.

    raises: DataError if the caption has no identifier that could be taken out
    """
    captions = config.prior.captions
    if captions == "class":
        return config.fill_class_prompts(subject)
    if captions != "stripped":
        return tuple(config.fill(template, subject) for template in captions)
    word = config.word(subject)
    stripped_caption = strip_word(caption, word)
    if stripped_caption == " ".join(caption.split()):
        raise DataError(
            f"the caption {caption!r} has no identifier {word!r}: prior.kind={config.prior.kind} "
            "would hold this caption to what the base model makes of it, while it is trained to "
            "make the subject; put the identifier in, or set prior.captions=class"
        )
    return (stripped_caption,) if stripped_caption else config.fill_class_prompts(subject)


def check_preserved_captions(
    config: Config, subject: SubjectConfig, photographs: list[Photograph]
) -> None:
    """raises DataError for the first caption that can't be trained on with prior.kind."""
    if config.prior.keeps_output:
        for photograph in photographs:
            for caption in photograph.captions:
                preserved_captions(config, subject, caption)
