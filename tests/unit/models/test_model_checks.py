from pathlib import Path

import pytest
from torch import nn

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_checks import _list_layer_shapes, check_training_settings


def config_of(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


@pytest.mark.parametrize(
    "override", ["train.lora.target_modules=[to_x]", "train.lora.text_target_modules=[to_q]"]
)
def test_layers_that_are_not_there_are_refused_by_name(tiny_model: Path, override: str) -> None:
    config = config_of("train.method=lora", "train.text_encoder=true", override)
    with pytest.raises(ConfigError, match=r"train\.lora\..*target_modules.*to_[xq]"):
        check_training_settings(config, tiny_model)
    check_training_settings(config_of("train.method=lora", "train.text_encoder=true"), tiny_model)


def test_files_name_the_layers_that_the_models_have(tiny_model: Path) -> None:
    parts = load_components(tiny_model)
    for part in ("unet", "text_encoder"):
        modules = getattr(parts, part).named_modules()
        layer_names = {n for n, m in modules if isinstance(m, (nn.Linear, nn.Conv2d))}
        assert dict(_list_layer_shapes(tiny_model / part, part)).keys() == layer_names


@pytest.mark.parametrize("section", ["prior", "sample"])
def test_more_layers_than_there_are_can_not_be_skipped(tiny_model: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.clip_skip=50 leaves nothing"):
        check_training_settings(config_of(f"{section}.clip_skip=50"), tiny_model)


def test_velocity_is_asked_for_where_snr_ends_at_zero(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="predicts velocity"):
        check_training_settings(config_of("loss.zero_terminal_snr=true"), tiny_model)
