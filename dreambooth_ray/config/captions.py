"""What is configured of captions: the order of tags, tags left out, words around them."""

from collections.abc import Iterable

from pydantic import Field, field_validator, model_validator

from dreambooth_ray.config.section import Section, Text, check_placeholders

CAPTION = "{caption}"


class CaptionsConfig(Section):
    """How the captions of photographs vary. A caption's tags are what its separators part."""

    shuffle: bool = Field(False, description="put a caption's tags into another order each time")
    keep_tokens: int = Field(
        1,
        ge=0,
        le=1000,
        description="tags at the front that stay where they are",
    )
    tag_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the other tags that are left out; never those with the identifier",
    )
    separator: Text = Field(",", description="what stands between tags")
    templates: tuple[Text, ...] = Field(
        (),
        description="words around a photograph's own caption, one of them at random: "
        '["a photo of {identifier} {class_noun}, {caption}"]',
    )
    variants: int = Field(
        16,
        ge=1,
        le=1000,
        description="how many shuffle and tag_dropout make of each caption, for steps to choose "
        "from; each is encoded once and held in memory",
    )

    @property
    def varies_tags(self) -> bool:
        """Whether tags change their order, or are left out."""
        return self.shuffle or self.tag_dropout > 0

    def refuse_separator_in_identifiers(self, identifiers: Iterable[str]) -> None:
        """raises: ValueError where one would be parted into several tags"""
        for identifier in identifiers if self.varies_tags else ():
            if self.separator in identifier:
                raise ValueError(
                    f"captions.separator={self.separator!r} would part subject.identifier="
                    f"{identifier!r} into tags; take another of the two"
                )

    @field_validator("templates")
    @classmethod
    def _templates_hold_the_caption(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            check_placeholders(template, ("identifier", "class_noun", "caption"))
            if CAPTION not in template:
                raise ValueError(
                    f"{template!r} has no {CAPTION}; put it where the photograph's own caption is "
                    "to stand, or give captions of a whole subject as subject.prompts"
                )
        return templates

    @model_validator(mode="after")
    def _variants_cover_all_templates(self) -> "CaptionsConfig":
        if self.varies_tags and self.variants < len(self.templates):
            raise ValueError(
                f"captions.variants={self.variants} is below the {len(self.templates)} "
                "captions.templates, and some would never be used; raise it"
            )
        return self
