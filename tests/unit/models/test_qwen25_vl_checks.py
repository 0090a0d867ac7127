import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.model_directory import model_outline
from dreambooth_ray.models.qwen25_vl_checks import check_qwen25_vl, expect_qwen25_vl
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return build_tiny("qwen-image", tmp_path / "model")


def check(directory: Path) -> int:
    return check_qwen25_vl(directory / "text_encoder")


def as_published(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def test_shapes_are_those_of_the_published_network() -> None:
    model = PUBLISHED_MODELS["qwen-image"]
    network = model.build_on_meta("text_encoder")
    shapes = {as_published(name): list(w.shape) for name, w in network.state_dict().items()}
    assert expect_qwen25_vl(Path("config.json"), model.part_config("text_encoder")) == shapes


@pytest.mark.parametrize("is_nested", [False, True])
def test_names_of_published_files_and_of_current_releases_are_known(
    directory: Path, is_nested: bool
) -> None:
    path = directory / "text_encoder" / "model.safetensors"
    published = {as_published(name): weight for name, weight in load_file(path).items()}
    nested = {
        f"model.{name}"
        if name.startswith("visual.")
        else name.replace("model.", "model.language_model."): weight
        for name, weight in published.items()
    }
    save_file(nested if is_nested else published, path, metadata={"format": "pt"})
    assert check(directory) == 16


def test_a_flat_configuration_is_known(directory: Path) -> None:
    """As Qwen2.5-VL's own directory has it."""
    path = directory / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]
    path.write_text(json.dumps(config))
    assert check(directory) == 16


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("text_config", {"num_attention_heads": 3}, "num_attention_heads=3 does not divide"),
        ("text_config", {"num_hidden_layers": 4}, "model.layers.3.self_attn.q_proj.weight is"),
        ("text_config", {"vocab_size": "many"}, "vocab_size='many' must be a whole number"),
        ("vision_config", {"depth": 3}, "visual.blocks.2.norm1.weight is"),
        ("vision_config", {"patch_size": 0}, "patch_size=0 must be a whole number"),
    ],
)
def test_bad_values_are_refused(
    directory: Path, section: str, keys: dict[str, Any], message: str
) -> None:
    path = directory / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config[section] |= keys
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        check(directory)


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_tokenizer_with_more_words_is_refused(directory: Path, is_flat: bool) -> None:
    path = directory / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    del config["text_config" if is_flat else "vocab_size"]
    path.write_text(json.dumps(config))
    model_outline(str(directory))
    words_path = directory / "tokenizer" / "tokenizer.json"
    content = json.loads(words_path.read_text())
    content["model"]["vocab"]["robot"] = 9999
    words_path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"tokenizer has \d+ words, and text_encoder/ knows 261"):
        model_outline(str(directory))
