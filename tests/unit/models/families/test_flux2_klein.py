from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.tiny_models import build_tiny

RECIPE = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("flux2-klein", tmp_path_factory.mktemp("klein") / "base")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("flux2-klein-distilled", tmp_path_factory.mktemp("klein") / "distilled")


def test_a_distilled_model_is_sampled_without_guidance_and_never_trained(distilled: Path) -> None:
    family = find_family(distilled)
    assert family.sampling_defaults["num_inference_steps"] == 4
    with pytest.raises(ConfigError, match=r"FLUX.2 Klein of 4 steps: .*train FLUX.2-klein-base"):
        check_training_settings(parse_config(RECIPE, "x", []), distilled)
    engine = Engine(load_components(distilled))
    engine.submit(Request("a robot", 0))
    with pytest.raises(ConfigError, match=r"guidance_scale=4 is not for FLUX.2 Klein of 4 steps"):
        engine.submit(Request("a robot", 0, guidance_scale=4.0))


def test_a_prompt_is_taken_whole_or_refused(base: Path) -> None:
    parts = load_components(base)
    encode = parts.functions.encode_prompt
    assert encode(parts, parts.text_forward_functions, "robot " * 60)["hidden"].shape == (
        1,
        512,
        24,
    )
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 6\d\d tokens"):
        encode(parts, parts.text_forward_functions, "robot " * 100)
