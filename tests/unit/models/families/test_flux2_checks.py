from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.flux2_checks import list_transformer_shapes
from dreambooth_ray.models.model_directory import model_outline
from dreambooth_ray.models.qwen3_checks import expect_qwen3
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json

TRANSFORMERS = {"flux2-klein-4b": False, "flux2-klein-9b": False, "flux2-dev": True}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shapes_are_those_of_the_published_transformer(name: str) -> None:
    model = PUBLISHED_MODELS[name]
    network = model.build_on_meta("transformer")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    config = model.part_config("transformer")
    assert list_transformer_shapes(config, embeds_guidance=TRANSFORMERS[name]) == shapes


@pytest.mark.parametrize("name", ["flux2-klein-4b", "flux2-klein-9b"])
def test_shapes_are_those_of_the_published_text_encoder(name: str) -> None:
    model = PUBLISHED_MODELS[name]
    network = model.build_on_meta("text_encoder")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    shapes.pop("lm_head.weight", None)
    assert expect_qwen3(model.part_config("text_encoder")) == shapes


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("flux2-dev", {"guidance_embeds": False}, "False is not of FLUX.2 dev, which has true"),
        ("flux2-klein", {"guidance_embeds": True}, "True is not of FLUX.2 Klein, which has false"),
        ("flux2-dev", {"joint_attention_dim": 48}, "context_embedder.weight is"),
        ("flux2-dev", {"num_layers": "many"}, "num_layers='many' must be a whole number"),
    ],
)
def test_another_transformer_is_refused(
    tmp_path: Path, name: str, keys: dict[str, Any], message: str
) -> None:
    directory = build_tiny(name, tmp_path / "model")
    change_json(directory / "transformer" / "config.json", keys)
    with pytest.raises(ConfigError, match=message):
        model_outline(str(directory))
