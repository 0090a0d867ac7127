from pathlib import Path

import pytest

from benchmarks.gated_runs import make_config
from benchmarks.settings_theme import KEYS, _select_overrides, count_turn_images
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.preparation import prepare_run


@pytest.mark.parametrize("name", KEYS)
def test_every_setting_is_a_configuration(name: str) -> None:
    overrides = ["subject.photos=photos", "subject.class_noun=dog", "model.uri=toyworld"]
    assert parse_config("", "a test", [*overrides, "train.batch_size=1", *KEYS[name]])


def test_a_part_of_a_batch_is_a_pass() -> None:
    assert count_turn_images((), 16) == 32
    assert count_turn_images(KEYS["batch of 4"], 16) == 128
    assert count_turn_images(KEYS["batch of 4 in 4 parts"], 16) == 32


@pytest.mark.parametrize("name", KEYS)
def test_every_setting_goes_with_what_the_runs_of_a_theme_have(tmp_path: Path, name: str) -> None:
    config = make_config(tmp_path, BenchmarkSettings(), "any", 1, *_select_overrides(name, 64))
    prepare_run(config, QuietDisplay())
