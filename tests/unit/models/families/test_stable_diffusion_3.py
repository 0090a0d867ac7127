from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_directory import check_resolution
from dreambooth_ray.models.precision import cast_untrainable_encoders, place_for_sampling
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.training.caption_embeddings import encode_captions
from tests.families.tiny_models import build_tiny, change_json

RECIPE = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora}"
# Of the tiny model: a window of CLIP's, and the tokens of T5.
WINDOW, T5_TOKENS = 77, 256


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("sd3", tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="module")
def parts(directory: Path) -> Components:
    return load_components(directory)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.method=kv", "train.method=kv is not for Stable Diffusion 3.*take full or lora"),
        (
            "identifier.kind=learned",
            "=learned is not for.*diffusers' pipeline of it reads no learned",
        ),
        ("loss.min_snr_gamma=5", "loss.min_snr_gamma=5.0 is not for"),
        ("sample.solver=ddim", "sample.solver=ddim is not for.*take euler, heun, dpmpp_2m"),
        ("sample.clip_skip=1", "sample.clip_skip=1 is not for"),
        ("sample.cache_every=2", "sample.cache_every=2 is not for"),
    ],
)
def test_what_it_can_t_do_is_refused_by_name(directory: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_training_settings(parse_config(RECIPE, "x", [setting]), directory)


def test_its_own_loss_is_taken_unless_another_is_asked_for(directory: Path) -> None:
    family = find_family(directory)
    config = fill_model_defaults(parse_config(RECIPE, "x", []), family)
    assert config.loss.timesteps == "logit_normal"
    asked = parse_config(RECIPE, "x", ["loss.timesteps=uniform"])
    assert fill_model_defaults(asked, family).loss.timesteps == "uniform"


def test_a_long_prompt_goes_through_clip_in_windows(parts: Components) -> None:
    encode = parts.functions.encode_prompt
    short = encode(parts, parts.text_forward_functions, "robot")
    long = encode(
        parts, parts.text_forward_functions, "a robot on a table in the rain, by night " * 3
    )
    assert short["hidden"].shape[1] == WINDOW + T5_TOKENS
    assert long["hidden"].shape[1] == 2 * WINDOW + T5_TOKENS
    assert short["pooled"].shape == long["pooled"].shape


def test_a_prompt_is_taken_whole_or_refused(parts: Components) -> None:
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 3\d\d tokens"):
        parts.functions.encode_prompt(parts, parts.text_forward_functions, "robot " * 50)


def test_captions_are_what_prompts_are(parts: Components) -> None:
    captions = ["a robot", "a photo of sks robot"]
    rows = encode_captions(parts, captions)
    for index, caption in enumerate(captions):
        alone = parts.functions.encode_prompt(parts, parts.text_forward_functions, caption)
        for name in ("hidden", "pooled"):
            assert torch.allclose(rows[name][index], alone[name][0], atol=1e-5)


def test_an_image_has_a_longest_side(directory: Path, parts: Components) -> None:
    engine = Engine(parts)
    with pytest.raises(ConfigError, match="width_px=272 is above 256, this model's limit"):
        engine.submit(Request("a robot", 0, width_px=272, height_px=64))
    check_resolution(directory, 256)
    with pytest.raises(ConfigError, match=r"train\.resolution=272 is above 256"):
        check_resolution(directory, 272)


def test_t5_is_never_in_float16(directory: Path) -> None:
    parts = load_components(directory)
    cast_untrainable_encoders(parts, "16-mixed")
    assert parts.text_encoders["text_encoder_3"].dtype == torch.bfloat16
    place_for_sampling(parts, torch.device("cpu"), torch.float16)
    dtypes = {name: encoder.dtype for name, encoder in parts.text_encoders.items()}
    assert dtypes == {
        "text_encoder": torch.float16,
        "text_encoder_2": torch.float16,
        "text_encoder_3": torch.bfloat16,
    }


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({}, "stable-diffusion-3-m"),
        ({"qk_norm": "rms_norm"}, "stable-diffusion-3-5-large"),
        (
            {"qk_norm": "rms_norm", "dual_attention_layers": [0]},
            "stable-diffusion-3-5-medium",
        ),
    ],
)
def test_it_is_named_as_weight_files_name_it(
    tmp_path: Path, changes: dict[str, object], architecture: str
) -> None:
    directory = tmp_path / "model"
    (directory / "transformer").mkdir(parents=True)
    (directory / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    path = directory / "transformer" / "config.json"
    path.write_text("{}")
    change_json(path, changes)
    assert find_family(directory).architecture(directory) == architecture
