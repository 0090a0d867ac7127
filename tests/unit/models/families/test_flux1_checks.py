import json
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.families.flux1_checks import list_transformer_shapes
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.t5_checks import expect_t5
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return build_tiny("flux1-dev", tmp_path / "dev")


@pytest.mark.parametrize("name", ["flux1-dev", "flux1-schnell"])
def test_shapes_are_those_of_the_published_transformer(name: str) -> None:
    model = PUBLISHED_MODELS[name]
    config = model.part_config("transformer")
    shapes = {
        key: list(tensor.shape)
        for key, tensor in model.build_on_meta("transformer").state_dict().items()
    }
    assert list_transformer_shapes(config, config["guidance_embeds"]) == shapes


def test_shapes_are_those_of_the_published_t5() -> None:
    model = PUBLISHED_MODELS["flux1-dev"]
    config = model.part_config("text_encoder_2")
    network = model.build_on_meta("text_encoder_2")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)
    assert expect_t5(config, config) == shapes


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"axes_dims_rope": [4, 4, 4]}, "must add up to attention_head_dim=16"),
        ("transformer", {"out_channels": 8}, "a FLUX.1 that is shown images"),
        ("transformer", {"pooled_projection_dim": 8}, "by config.json time_text_embed"),
        ("text_encoder_2", {"num_layers": 3}, "by config.json encoder.block.2"),
        ("text_encoder_2", {"is_gated_act": False}, "the weights have no such tensor"),
        ("vae", {"latent_channels": 8}, "by config.json"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    directory: Path, part: str, changes: dict[str, object], message: str
) -> None:
    family = find_family(directory)
    family.check(directory)
    change_json(directory / part / "config.json", changes)
    with pytest.raises(ConfigError, match=f"{part}.*{message}"):
        family.check(directory)


def test_a_tokenizer_of_another_t5_is_named(directory: Path) -> None:
    path = directory / "tokenizer_2" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] += [[f"word{k}", -3.0] for k in range(100)]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"tokenizer_2 has \d+ words, and text_encoder_2/ knows"):
        find_family(directory).check(directory)
    path.unlink()
    with pytest.raises(ConfigError, match=r"neither .* nor spiece"):
        find_family(directory).check(directory)
