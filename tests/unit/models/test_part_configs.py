import inspect
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import DEFAULTS, read_part_config
from tests.published_models import CONFIGS, SD15


@pytest.mark.parametrize(
    ("part", "network_class"),
    [
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("scheduler", DDPMScheduler),
    ],
)
def test_defaults_are_those_of_the_classes(part: str, network_class: type) -> None:
    parameters = inspect.signature(network_class.__init__).parameters
    for key, value in DEFAULTS[part].items():
        default = parameters[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value, key


def test_defaults_of_the_text_encoder_are_those_of_its_class() -> None:
    config = CLIPTextConfig()
    assert {key: getattr(config, key) for key in DEFAULTS["text_encoder"]} == (
        DEFAULTS["text_encoder"]
    )


def test_keys_that_a_published_file_leaves_out_have_their_defaults() -> None:
    directory = CONFIGS / SD15
    assert read_part_config(directory, "scheduler")["prediction_type"] == "epsilon"
    assert read_part_config(directory, "vae")["scaling_factor"] == 0.18215
    assert read_part_config(directory, "unet")["cross_attention_dim"] == 768


@pytest.mark.parametrize(
    ("text", "said"), [(None, "missing"), ("{", "can't be read"), ("[]", "no")]
)
def test_a_file_that_is_no_configuration_is_named(
    tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "unet" / "config.json"
    path.parent.mkdir()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"unet/config\.json.*{said}"):
        read_part_config(tmp_path, "unet")
