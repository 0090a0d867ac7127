"""What the family says of its directories, and what it refuses."""

import shutil
from pathlib import Path

import pytest

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.families.z_image import FAMILY, SMALL, TURBO
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_directory import model_directory
from tests.families.hostile_directories import DAMAGES
from tests.families.tiny_models import build_tiny, change_json

SUBJECT = "subject: {photos: p, class_noun: robot}"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return {name: build_tiny(name, folder / name) for name in ("z-image", "z-image-turbo")}


def test_the_scheduler_tells_which_one_it_is(directories: dict[str, Path]) -> None:
    assert find_family(model_directory(str(directories["z-image"]))) == FAMILY
    assert find_family(model_directory(str(directories["z-image-turbo"]))) == TURBO
    assert find_family(model_directory("toyworld-flow")) == SMALL
    assert FAMILY.size_multiple(directories["z-image"]) == 16
    assert SMALL.size_multiple(model_directory("toyworld-flow")) == 8
    assert SMALL.default_side(model_directory("toyworld-flow")) == 64


def test_a_distilled_model_is_not_trained(directories: dict[str, Path]) -> None:
    config = parse_config(SUBJECT, "x", ["model.uri=turbo", "train.method=lora"])
    with pytest.raises(ConfigError, match=r"model.uri='turbo' is a Z-Image-Turbo: it is distilled"):
        check_training_settings(config, directories["z-image-turbo"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.text_encoder=true", "train.text_encoder=true is not for Z-Image"),
        ("identifier.kind=learned", "identifier.kind=learned is not for Z-Image"),
        ("train.method=kv", "train.method=kv is not for Z-Image"),
        ("loss.min_snr_gamma=5", "loss.min_snr_gamma=5.0 is not for Z-Image"),
        ("prior.solver=ddim", "prior.solver=ddim is not for Z-Image"),
        ("sample.clip_skip=1", "sample.clip_skip=1 is not for Z-Image"),
        ("train.lora.target_modules=[conv1]", "no linear or convolution layer .* named conv1"),
    ],
)
def test_what_it_can_not_do_is_refused(
    directories: dict[str, Path], setting: str, words: str
) -> None:
    method = [] if "method" in setting else ["train.method=lora"]
    config = parse_config(SUBJECT, "x", [*method, setting])
    with pytest.raises(ConfigError, match=words):
        check_training_settings(config, directories["z-image"])


def test_what_a_configuration_leaves_open_is_the_familys() -> None:
    config = fill_model_defaults(parse_config(SUBJECT, "x", ["prior.guidance_scale=2"]), FAMILY)
    assert (config.prior.solver, config.prior.guidance_scale) == ("euler", 2)
    assert (config.sample.num_inference_steps, config.sample.guidance_scale) == (28, 5)
    assert config.train.lora.target_modules == FAMILY.lora_targets
    assert not config.train.text_encoder


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("all_patch_size", [4], "all_patch_size=.4., and Z-Image has .2."),
        ("siglip_feat_dim", 8, "is of Z-Image-Omni"),
        ("axes_dims", [4, 4, 4], r"axes_dims=\[4, 4, 4\] must add up to the width of a head"),
        ("cap_feat_dim", 0, "cap_feat_dim=0 must be a whole number above 0"),
    ],
)
def test_other_transformers_are_refused(
    directories: dict[str, Path], tmp_path: Path, key: str, value: object, words: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(directories["z-image"], directory)
    change_json(directory / "transformer" / "config.json", {key: value})
    with pytest.raises(ConfigError, match=words):
        model_directory(str(directory))


def test_parts_of_other_models_are_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(directories["z-image"], directory)
    toy = model_directory("toyworld-flow")
    for part, words in (("vae", "vae/ gives 8"), ("text_encoder", "text_encoder/ gives 128")):
        shutil.rmtree(directory / part)
        shutil.copytree(toy / part, directory / part)
        if part == "text_encoder":
            shutil.rmtree(directory / "tokenizer")
            shutil.copytree(toy / "tokenizer", directory / "tokenizer")
        with pytest.raises(ConfigError, match=words):
            model_directory(str(directory))


def test_damages_are_found_by_the_files_alone(directories: dict[str, Path], tmp_path: Path) -> None:
    """All but numbers inside of tensors, which are looked at as they are read."""
    for number, (name, damage) in enumerate(DAMAGES.items()):
        for part in ("transformer", "vae", "text_encoder"):
            directory = tmp_path / f"{number}-{part}"
            shutil.copytree(directories["z-image"], directory)
            damage.apply(directory, part)
            if name == "NaN":
                continue
            with pytest.raises(ConfigError) as refused:
                model_directory(str(directory))
            assert damage.expected_word(part) in str(refused.value), name
            assert "\n" not in str(refused.value)


def test_a_prompt_that_is_too_long_is_refused_whole(directories: dict[str, Path]) -> None:
    parts = load_components(directories["z-image"])
    with pytest.raises(ConfigError, match=r"takes 519 tokens.* reads 512; shorten it"):
        parts.functions.encode_prompt(parts, parts.text_forward_functions, "x" * 500)
