import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["prior.captions=a robot"],
            r"^prior\.captions='a robot': take stripped, class, or a list",
        ),
        (["prior.captions=[]"], r"^prior\.captions is an empty list"),
        (["prior.kind=both", "prior.count=0"], r"^prior\.kind=both keeps class images too"),
        (["prior.kind=output", "prior.folder=x"], r"^prior\.folder='.*x' has class images"),
    ],
)
def test_a_mistake_is_said_by_its_key_alone(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)


def test_captions_may_be_a_list() -> None:
    text = "subject: {photos: p, class_noun: robot}"
    config = parse_config(text, "x", ['prior.captions=["a {class_noun}", a cat]'])
    assert config.prior.captions == ("a {class_noun}", "a cat")
