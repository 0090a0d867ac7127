"""Captions under which the base model's output is kept: those without an identifier."""

import re

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_words import caption_has_word, remove_word
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.errors import DataError


def list_preservation_captions(
    config: Config, subject: SubjectConfig, caption: str
) -> tuple[str, ...]:
    """The captions, one at random a step, that go with an image of a caption.

    raises: DataError if the caption has no identifier that could be taken out, or if one that is to
        be kept has it
    """
    captions_setting = config.prior.captions
    if captions_setting != "stripped":
        templates = config.class_templates if captions_setting == "class" else captions_setting
        setting_key = "prior.prompt" if captions_setting == "class" else "prior.captions"
        return _fill_templates_refusing_identifiers(config, subject, templates, setting_key)
    identifier_word = config.word(subject)
    if not caption_has_word(caption, identifier_word):
        raise DataError(
            f"prior.captions=stripped: the caption {caption!r} has no identifier "
            f"{identifier_word!r}; "
            f"prior.kind={config.prior.kind} would hold this caption to what the base model makes "
            "of it, while it is trained to make the subject; put the identifier in, or set "
            "prior.captions=class"
        )
    for other_subject in config.all_subjects:
        caption = remove_word(caption, config.word(other_subject))
    if re.search(r"\w", caption):
        return (caption,)
    return _fill_templates_refusing_identifiers(
        config, subject, config.class_templates, "prior.prompt"
    )


def _fill_templates_refusing_identifiers(
    config: Config, subject: SubjectConfig, templates: tuple[str, ...], setting_key: str
) -> tuple[str, ...]:
    filled_templates = tuple(config.fill(template, subject) for template in templates)
    for filled_text in filled_templates:
        for identifier_word in (
            config.word(other_subject) for other_subject in config.all_subjects
        ):
            if caption_has_word(filled_text, identifier_word):
                raise DataError(
                    f"{setting_key}: {filled_text!r} has the identifier {identifier_word!r}, and "
                    "prior.kind="
                    f"{config.prior.kind} would hold it to what the base model makes of it; take "
                    "the identifier out"
                )
    return filled_templates


def check_preserved_captions(
    config: Config, subject: SubjectConfig, photographs: list[Photograph]
) -> None:
    """raises DataError for the first caption that can't be trained on with prior.kind."""
    if config.prior.keeps_output:
        for photograph in photographs:
            for caption in photograph.captions:
                list_preservation_captions(config, subject, caption)
