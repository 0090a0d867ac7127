"""What families with a frozen language model for text can't do is refused by name."""

from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_checks import check_training_settings
from tests.families.tiny_models import build_tiny

RECIPE = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora}"
TITLES = {
    "chroma": "Chroma",
    "flux2-dev": "FLUX.2 dev",
    "flux2-klein": "FLUX.2 Klein",
    "krea2": "Krea 2",
    "qwen-image": "Qwen-Image",
    "sana": "Sana",
}


@pytest.fixture(scope="module", params=TITLES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, family: str) -> Path:
    return build_tiny(family, tmp_path_factory.mktemp("refusals") / "base")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.text_encoder=true", "train.text_encoder=true is not for {title}"),
        ("train.method=kv", "train.method=kv is not for {title}.*take full or lora"),
        ("identifier.kind=learned", "identifier.kind=learned is not for {title}"),
        ("loss.min_snr_gamma=5", "loss.min_snr_gamma=5.0 is not for {title}"),
        ("sample.solver=ddim", "sample.solver=ddim is not for .*take euler, heun, dpmpp_2m"),
        ("sample.clip_skip=1", "sample.clip_skip=1 is not for {title}"),
    ],
)
def test_what_it_can_t_do_is_refused_by_name(
    base: Path, family: str, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.format(title=TITLES[family])):
        check_training_settings(parse_config(RECIPE, "x", [setting]), base)
