import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import check_resolution, model_outline
from tests.families.tiny_models import build_tiny, change_json

RECIPE = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("krea2", tmp_path_factory.mktemp("krea") / "base")


@pytest.fixture(scope="module")
def parts(base: Path) -> Components:
    return load_components(base)


def test_sides_are_whole_tokens(base: Path) -> None:
    check_resolution(base, 80)
    with pytest.raises(ConfigError, match=r"train.resolution=72 is not a multiple of 16.*try 64"):
        check_resolution(base, 72)


def test_a_distilled_model_is_sampled_and_never_trained(base: Path, tmp_path: Path) -> None:
    directory = tmp_path / "turbo"
    shutil.copytree(base, directory)
    change_json(directory / "model_index.json", {"is_distilled": True})
    family = find_family(directory)
    assert family.sampling_defaults["num_inference_steps"] == 8
    with pytest.raises(ConfigError, match=r"Krea 2 Turbo: .*train Krea-2-Raw"):
        check_training_settings(parse_config(RECIPE, "x", []), directory)
    turbo, raw = load_components(directory), load_components(base)
    shifts = [
        parts.functions.noise_schedule(parts, shape, 4).sigmas  # type: ignore[attr-defined]
        for parts in (turbo, raw)
        for shape in ((8, 8), (128, 128))
    ]
    assert shifts[0] == shifts[1]
    assert shifts[2] != shifts[3]


def test_the_layer_of_one_number_takes_the_rank_of_all(base: Path) -> None:
    """As diffusers' script has it; one of its own is held against its width."""
    check_training_settings(parse_config(RECIPE, "x", ["train.lora.rank=8"]), base)
    with pytest.raises(ConfigError, match="rank=9 is above 8, the width of "):
        check_training_settings(parse_config(RECIPE, "x", ["train.lora.rank=9"]), base)
    pattern = 'train.lora.rank_pattern={"projector": 2}'
    with pytest.raises(ConfigError, match=r"rank_pattern.projector=2 is above 1, the width of "):
        check_training_settings(parse_config(RECIPE, "x", ["train.lora.rank=8", pattern]), base)


def test_text_is_what_the_index_says_of_layers(base: Path, parts: Components) -> None:
    hidden = parts.functions.encode_prompt(parts, parts.text_forward_functions, "a robot")["hidden"]
    assert hidden.shape[2:] == (3, 8)
    index = json.loads((base / "model_index.json").read_text())
    pipeline = parts.functions.build_pipeline(parts, base)
    assert list(pipeline.config.text_encoder_select_layers) == index["text_encoder_select_layers"]


def test_padding_changes_no_number(base: Path, parts: Components) -> None:
    """diffusers pads prompts to 512 tokens between the prompt and the marks behind it."""
    pipeline: Any = parts.functions.build_pipeline(parts, base)
    with torch.no_grad():
        padded, is_token = pipeline.get_text_hidden_states("a red robot")
        hidden = parts.functions.encode_prompt(parts, parts.text_forward_functions, "a red robot")[
            "hidden"
        ]
    assert padded.shape[1] > hidden.shape[1]
    assert (padded[is_token] - hidden[0]).abs().max() <= 1e-5


def test_a_prompt_is_taken_whole_or_refused(parts: Components) -> None:
    encode = parts.functions.encode_prompt
    short, longer = (
        encode(parts, parts.text_forward_functions, "robot " * count)["hidden"] for count in (1, 40)
    )
    assert longer.shape[1] - short.shape[1] == 6 * 39
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 6\d\d tokens"):
        encode(parts, parts.text_forward_functions, "robot " * 90)


def test_rows_of_several_lengths_are_padded_and_marked(parts: Components) -> None:
    encode = parts.functions.encode_prompt
    rows = [
        encode(parts, parts.text_forward_functions, text) for text in ("a robot", "a red robot")
    ]
    assert "is_token" not in parts.functions.join_rows(rows[:1] * 2).tensors
    joined = parts.functions.join_rows(rows)
    lengths = [row["hidden"].shape[1] for row in rows]
    assert joined["is_token"].sum(dim=1).tolist() == lengths
    assert not joined["hidden"][0, lengths[0] :].any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"patch_size": 1}, "patch_size=1 must be 2"),
        ({"text_encoder_select_layers": [1, 2]}, r"\[1, 2\] must be as many layers"),
        ({"text_encoder_select_layers": [1, 2, "4"]}, "must be as many layers"),
        ({"text_encoder_select_layers": [1, 2, 6]}, "hidden states of layer 6 are read"),
    ],
)
def test_another_index_is_refused(
    base: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(base, directory)
    change_json(directory / "model_index.json", keys)
    with pytest.raises(ConfigError, match=message):
        model_outline(str(directory))
