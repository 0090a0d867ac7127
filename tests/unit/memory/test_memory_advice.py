from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.memory_advice import find_fitting_settings
from dreambooth_ray.memory.training_memory import estimate_footprint


def make_config(*overrides: str) -> Config:
    return parse_config(
        "subject: {photos: p, class_noun: robot}", "x",
        ["train.resolution=64", "train.batch_size=4", *overrides],
    )  # fmt: skip


def test_the_cheapest_settings_that_fit_are_named(tiny_model: Path) -> None:
    config = make_config("cluster.gpus=true")
    needed = estimate_footprint(config, tiny_model).total_bytes
    settings, fitting_bytes = find_fitting_settings(config, tiny_model, needed - 1) or ([], 0)
    assert settings == ["train.precision=bf16-mixed"]
    assert fitting_bytes < needed
    more_settings, less_bytes = find_fitting_settings(config, tiny_model, needed // 2) or ([], 0)
    assert more_settings[0] == "train.precision=bf16-mixed"
    assert len(more_settings) > 1
    changed = make_config("cluster.gpus=true", *more_settings)
    assert estimate_footprint(changed, tiny_model).total_bytes == less_bytes <= needed // 2


def test_what_can_never_fit_is_said(tiny_model: Path) -> None:
    assert find_fitting_settings(make_config(), tiny_model, 1000) is None


@pytest.mark.parametrize("setting", ["train.ema_decay=0.99", "train.optimizer=prodigy"])
def test_states_of_the_optimizer_count(setting: str, tiny_model: Path) -> None:
    more = ["train.lr=1"] if "prodigy" in setting else []
    with_more = estimate_footprint(make_config(setting, *more), tiny_model).states_bytes
    assert with_more > estimate_footprint(make_config(), tiny_model).states_bytes
