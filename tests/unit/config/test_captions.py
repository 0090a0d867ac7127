import pytest

from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

SHUFFLED = "captions.shuffle=true"


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: dog}", "x", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["captions.keep_tokens=-1"], r"^captions\.keep_tokens"),
        (["captions.tag_dropout=1.5"], r"^captions\.tag_dropout"),
        (["captions.variants=0"], r"^captions\.variants"),
        (["captions.separator= "], r"^captions\.separator"),
        (["captions.templates=[a photo]"], r"'a photo' has no \{caption\}; put it where"),
        (
            [SHUFFLED, "captions.variants=1", 'captions.templates=["a {caption}", "{caption}"]'],
            r"captions\.variants=1 is below the 2 captions\.templates",
        ),
        (
            [SHUFFLED, "subject.identifier=sks, the"],
            r"captions\.separator=',' would part subject\.identifier='sks, the' into tags",
        ),
    ],
)
def test_what_can_not_work_is_refused_by_name(overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_config(*overrides)


def test_kohyas_settings_under_our_names() -> None:
    config = make_config(SHUFFLED, "captions.separator=;", "captions.keep_tokens=2")
    assert config.captions.varies_tags
    assert parse_config(dump_config(config), "x", []).captions == config.captions
    assert not make_config("captions.keep_tokens=2").captions.varies_tags
