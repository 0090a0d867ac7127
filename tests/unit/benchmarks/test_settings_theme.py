import pytest

from benchmarks.settings_theme import KEYS, images_a_turn
from dreambooth_ray.config.load import parse_config


@pytest.mark.parametrize("name", KEYS)
def test_every_setting_is_a_configuration(name: str) -> None:
    overrides = ["subject.photos=photos", "subject.class_noun=dog", "model.uri=toyworld"]
    assert parse_config("", "a test", [*overrides, "train.batch_size=1", *KEYS[name]])


def test_a_part_of_a_batch_is_a_pass() -> None:
    assert images_a_turn((), 16) == 32
    assert images_a_turn(KEYS["batch of 4"], 16) == 128
    assert images_a_turn(KEYS["batch of 4 in 4 parts"], 16) == 32
