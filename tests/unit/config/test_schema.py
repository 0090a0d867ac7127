import re

import pytest
from pydantic import ValidationError

from dreambooth_ray.config.key_types import KeyType
from dreambooth_ray.config.load import list_config_keys, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

MINIMAL = "subject: {photos: p, class_noun: cat}"


def _takes_fractions(key: str) -> bool:
    key_type = KeyType(Config)
    for name in key.split("."):
        key_type = key_type.child(name)
    return float in key_type.members


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


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_a_fraction_is_a_number_and_has_an_end(number: str) -> None:
    keys = [key for key in list_config_keys() if _takes_fractions(key)]
    assert {"loss.logit_mean", "train.lr", "choice.max_drift"} <= set(keys)
    keys += ["prior.resources.box", "train.lora.alpha_pattern.to_q", "prior.guidance_interval.0"]
    for key in keys:
        with pytest.raises(ConfigError, match=key.split(".")[1]):
            parse_config(MINIMAL, "x", [f"{key}={number}"])


@pytest.mark.parametrize(
    "override",
    ["train.resolution=1000000", "train.resolution=[64, 8200]", "validation.timesteps=1000000000",
     "prior.batch_size=100000000"],
)  # fmt: skip
def test_what_no_memory_holds_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        parse_config(MINIMAL, "x", [override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lora.target_modules=to_q", "train.lora.target_modules='to_q': give a list: [a, b]"),
        ("train.lora.target_modules=[]", "train.lora.target_modules=[]: give at least one"),
        ("train.lora.rank_pattern=4", "train.lora.rank_pattern=4: give a mapping of names"),
    ],
)
def test_forms_are_named_in_the_words_of_recipes(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_config(MINIMAL, "x", [override])
