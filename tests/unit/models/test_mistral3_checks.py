import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.mistral3_checks import check_mistral3, expect_mistral3, nest_name
from dreambooth_ray.models.model_directory import model_outline
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return build_tiny("flux2-dev", tmp_path / "model")


def check(directory: Path) -> int:
    return check_mistral3(directory / "text_encoder", directory / "tokenizer", min_layers=30)


def test_shapes_are_those_of_the_published_network() -> None:
    model = PUBLISHED_MODELS["flux2-dev"]
    network = model.build_on_meta("text_encoder")
    shapes = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    del shapes["lm_head.weight"]
    expected = expect_mistral3(Path("config.json"), model.part_config("text_encoder"))
    assert {nest_name(name): shape for name, shape in expected.items()} == shapes


@pytest.mark.parametrize("is_nested", [False, True])
def test_names_of_published_files_and_of_current_releases_are_known(
    directory: Path, is_nested: bool
) -> None:
    path = directory / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    assert "language_model.model.norm.weight" in weights
    head = weights["language_model.model.embed_tokens.weight"].clone()
    if is_nested:
        weights = {nest_name(name): weight for name, weight in weights.items()}
    weights["lm_head.weight" if is_nested else "language_model.lm_head.weight"] = head
    save_file(weights, path, metadata={"format": "pt"})
    assert check(directory) == 8


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("text_config", {"num_hidden_layers": 20}, "hidden states of layer 30 are read"),
        ("text_config", {"num_hidden_layers": 32}, r"layers.31.self_attn.q_proj.weight is"),
        ("text_config", {"vocab_size": "many"}, "vocab_size='many' must be a whole number"),
        ("text_config", {"head_dim": 4}, "self_attn.q_proj.weight is"),
        ("vision_config", {"num_hidden_layers": 2}, r"transformer.layers.1.attention.q_proj"),
        ("vision_config", {"patch_size": 0}, "patch_size=0 must be a whole number"),
        (None, {"spatial_merge_size": 3}, "merging_layer.weight is"),
        (None, {"multimodal_projector_bias": True}, "linear_1.bias is"),
    ],
)
def test_bad_values_are_refused(
    directory: Path, section: str | None, keys: dict[str, Any], message: str
) -> None:
    path = directory / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    (config if section is None else config[section]).update(keys)
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        check(directory)


def test_width_of_a_head_follows_where_it_is_not_named(directory: Path) -> None:
    path = directory / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {"head_dim": None, "num_attention_heads": 1}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"q_proj.weight is \[8, 8\]"):
        check(directory)


def test_a_processor_that_was_cut_off_is_named(directory: Path) -> None:
    model_outline(str(directory))
    path = directory / "tokenizer" / "preprocessor_config.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ConfigError, match=r"preprocessor_config.json can't be read"):
        model_outline(str(directory))
