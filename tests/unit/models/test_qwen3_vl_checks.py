import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.qwen3_vl_checks import check_qwen3_vl, expect_qwen3_vl
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return build_tiny("krea2", tmp_path / "model")


def check(directory: Path) -> int:
    return check_qwen3_vl(directory / "text_encoder", last_layer=4)


def test_shapes_are_those_of_the_published_network() -> None:
    model = PUBLISHED_MODELS["krea2"]
    network = model.build_on_meta("text_encoder")
    shapes = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    assert expect_qwen3_vl(Path("config.json"), model.part_config("text_encoder")) == shapes


def test_files_of_the_whole_language_model_are_known(directory: Path) -> None:
    path = directory / "text_encoder" / "model.safetensors"
    weights = {f"model.{name}": weight for name, weight in load_file(path).items()}
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    save_file(weights, path, metadata={"format": "pt"})
    assert check(directory) == 8


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("text_config", {"num_hidden_layers": 3}, "hidden states of layer 4 are read"),
        ("text_config", {"num_hidden_layers": 6}, "layers.5.self_attn.q_proj.weight is"),
        ("text_config", {"vocab_size": "many"}, "vocab_size='many' must be a whole number"),
        ("vision_config", {"depth": 3}, "visual.blocks.2.norm1.weight is"),
        ("vision_config", {"deepstack_visual_indexes": [0, 1]}, "deepstack_merger_list.1"),
        ("vision_config", {"deepstack_visual_indexes": 2}, "must be a list of layers"),
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
