from pathlib import Path

import pytest

from dreambooth_ray.config.learning_rates import check_rates
from dreambooth_ray.config.load import load_config, parse_config, recipe_names
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.families.flux2_klein import FAMILY
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.family_support import check_support
from dreambooth_ray.models.model_checks import check_method
from dreambooth_ray.models.model_defaults import fill_model_defaults
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
        check_method(parse_config(RECIPE, "x", []), distilled)
    engine = Engine(load_components(distilled))
    engine.submit(Request("a robot", 0))
    with pytest.raises(ConfigError, match=r"guidance_scale=4 is not for FLUX.2 Klein of 4 steps"):
        engine.submit(Request("a robot", 0, guidance_scale=4.0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.text_encoder=true", "train.text_encoder=true is not for FLUX.2 Klein"),
        ("train.method=kv", "train.method=kv is not for FLUX.2 Klein.*take full or lora"),
        ("identifier.kind=learned", "identifier.kind=learned is not for"),
        ("loss.min_snr_gamma=5", "loss.min_snr_gamma=5.0 is not for"),
        ("sample.solver=ddim", "sample.solver=ddim is not for.*take euler, heun, dpmpp_2m"),
        ("sample.clip_skip=1", "sample.clip_skip=1 is not for"),
    ],
)
def test_what_it_can_t_do_is_refused_by_name(base: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_method(parse_config(RECIPE, "x", [setting]), base)


def test_a_prompt_is_taken_whole_or_refused(base: Path) -> None:
    parts = load_components(base)
    encode = parts.functions.encode_prompt
    assert encode(parts, parts.text_forwards, "robot " * 60)["hidden"].shape == (1, 512, 24)
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 6\d\d tokens"):
        encode(parts, parts.text_forwards, "robot " * 100)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("flux2-klein")])
def test_recipes_by_memory_ask_for_what_the_family_has(name: str) -> None:
    config = load_config(name, ["subject.photos=p", "subject.class_noun=dog"])
    assert config.model.uri.startswith("black-forest-labs/FLUX.2-klein-base-")
    check_support(config, FAMILY)
    assert fill_model_defaults(config, FAMILY).prior.guidance_scale == 4.0
    assert check_rates(config) == []
