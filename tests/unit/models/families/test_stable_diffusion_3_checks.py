import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.clip_checks import list_clip_shapes
from dreambooth_ray.models.families.stable_diffusion_3_checks import list_transformer_shapes
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.t5_checks import expect_t5
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json


def read_shapes(name: str, part: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    model = PUBLISHED_MODELS[name]
    state = model.build_on_meta(part).state_dict()
    shapes = {key.removeprefix("text_model."): list(t.shape) for key, t in state.items()}
    return model.part_config(part), shapes


@pytest.mark.parametrize("name", ["sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_shapes_are_those_of_the_published_transformer(name: str) -> None:
    config, shapes = read_shapes(name, "transformer")
    assert list_transformer_shapes(config, config) == shapes


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_shapes_are_those_of_the_published_clip(part: str) -> None:
    config, shapes = read_shapes("sd3-medium", part)
    assert list_clip_shapes(config) == shapes


def test_shapes_are_those_of_the_published_t5() -> None:
    config, shapes = read_shapes("sd3-medium", "text_encoder_3")
    shapes.pop("encoder.embed_tokens.weight", None)
    assert expect_t5(config, config) == shapes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sd3")
    return {name: build_tiny(name, folder / name) for name in ("sd3", "sd3-without-t5", "sd35")}


@pytest.mark.parametrize("name", ["sd3", "sd3-without-t5", "sd35"])
def test_a_whole_directory_is_taken(models: dict[str, Path], name: str) -> None:
    find_family(models[name]).check(models[name])


CONFIG, SCHEDULER = "transformer/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        (CONFIG, {"qk_norm": "layer_norm"}, "qk_norm='layer_norm'; null and 'rms_norm' are known"),
        (CONFIG, {"qk_norm": "rms_norm"}, r"norm_q\.weight is \[16\], .* no such tensor"),
        (CONFIG, {"num_layers": 1}, "transformer_blocks.0.norm1_context.linear.weight is"),
        (CONFIG, {"caption_projection_dim": 16}, "must be the width of all heads, 32"),
        (CONFIG, {"out_channels": 8}, "in_channels=4, out_channels=8"),
        ("text_encoder/config.json", {"projection_dim": 8}, "text_projection.weight is"),
        ("text_encoder_3/config.json", {"num_layers": 3}, "encoder.block.2.* no such tensor"),
        ("vae/config.json", {"latent_channels": 8}, "the files are of different models"),
        (SCHEDULER, {"_class_name": "DDIMScheduler"}, "says DDIMScheduler"),
        (SCHEDULER, {"num_train_timesteps": 10}, "num_train_timesteps=10"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    models: dict[str, Path], tmp_path: Path, file: str, keys: dict[str, Any], message: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(models["sd3"], directory)
    change_json(directory / file, keys)
    with pytest.raises(ConfigError, match=message):
        find_family(directory).check(directory)


def test_clip_and_t5_have_to_be_of_the_transformer(models: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(models["sd3"], directory)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(directory / f"{part}_2")
        shutil.copytree(directory / part, directory / f"{part}_2")
    with pytest.raises(
        ConfigError, match=r"takes text of width 48 and 48 pooled, .* give 32 and 32"
    ):
        find_family(directory).check(directory)
