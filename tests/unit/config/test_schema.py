import pytest
from pydantic import ValidationError

from dreambooth_ray.config.load import parse_config


def test_prompts_are_filled_in() -> None:
    config = parse_config(
        "subject: {photos: p, identifier: ohwx, class_noun: cat}\n"
        "train: {prompt: 'a photo of {identifier} {class_noun}'}\n"
        "prior: {prompt: 'any {class_noun}'}\n"
        "sample: {prompts: ['{identifier} at sea']}",
        "x",
        [],
    )
    assert config.instance_prompt == "a photo of ohwx cat"
    assert config.class_prompts == ("any cat",)
    assert config.sample_prompts == ("ohwx at sea",)


def test_a_configuration_is_frozen() -> None:
    config = parse_config("subject: {photos: p, class_noun: cat}", "x", [])
    with pytest.raises(ValidationError):
        config.seed = 5  # type: ignore[misc]
