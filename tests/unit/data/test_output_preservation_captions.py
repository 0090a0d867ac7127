from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.output_preservation_captions import (
    check_preserved_captions,
    list_preservation_captions,
)
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.errors import DataError


def make_config(*overrides: str) -> Config:
    return parse_config(
        "subject: {photos: p, class_noun: dog}", "x", ["prior.kind=output", *overrides]
    )


def test_what_is_kept_is_the_caption_without_identifier_the_class_or_a_list() -> None:
    config = make_config()
    assert list_preservation_captions(config, config.subject, "a sks dog, running") == (
        "a dog, running",
    )
    assert list_preservation_captions(config, config.subject, "sks") == ("a dog",)
    config = make_config(
        "prior.captions=class", 'prior.prompt=["a {class_noun}", "one {class_noun}"]'
    )
    assert list_preservation_captions(config, config.subject, "a sks dog") == ("a dog", "one dog")
    config = make_config('prior.captions=["a {class_noun}", a cat]')
    assert list_preservation_captions(config, config.subject, "a sks dog") == ("a dog", "a cat")
    learned_config = make_config("identifier.kind=learned")
    stripped = list_preservation_captions(learned_config, learned_config.subject, "a <sks> dog")
    assert stripped == ("a dog",)


def test_no_subjects_identifier_is_kept() -> None:
    text = "subjects: [{photos: p, class_noun: dog}, {photos: q, identifier: zwx, class_noun: cat}]"
    config = parse_config(text, "x", ["prior.kind=output"])
    stripped = list_preservation_captions(config, config.subject, "a sks dog beside a zwx cat")
    assert stripped == ("a dog beside a cat",)
    for override, key in (
        ('prior.captions=["a {identifier} {class_noun}"]', r"prior\.captions"),
        ('prior.prompt="a sks {class_noun}"', r"prior\.prompt"),
    ):
        config = make_config(override, *(["prior.captions=class"] if "prompt" in key else []))
        with pytest.raises(DataError, match=rf"{key}: 'a sks dog' has the identifier 'sks'"):
            list_preservation_captions(config, config.subject, "a sks dog")


@pytest.mark.parametrize("caption", ["dog, outdoors, grass,", "a dog , in snow", "who is this ?"])
def test_punctuation_is_no_identifier(caption: str) -> None:
    config = make_config()
    with pytest.raises(DataError, match="has no identifier"):
        list_preservation_captions(config, config.subject, caption)
    assert list_preservation_captions(config, config.subject, "sks.") == ("a dog",)


def test_a_caption_without_identifier_is_refused_where_its_own_is_kept() -> None:
    photograph = Photograph(Path("x.png"), Image.new("RGB", (8, 8)), ("a sks dog", "a dog"))
    config = make_config()
    with pytest.raises(DataError, match=r"'a dog' has no identifier 'sks'.*prior\.captions=class"):
        check_preserved_captions(config, config.subject, [photograph])
    check_preserved_captions(make_config("prior.captions=class"), config.subject, [photograph])
    check_preserved_captions(make_config("prior.kind=images"), config.subject, [photograph])
