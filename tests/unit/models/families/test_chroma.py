from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.learning_rates import check_rates
from dreambooth_ray.config.load import load_config, parse_config, recipe_names
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.families.chroma import FAMILY
from dreambooth_ray.models.families.chroma_checks import check_networks, expect_transformer
from dreambooth_ray.models.family_support import check_support
from dreambooth_ray.models.model_checks import check_method
from dreambooth_ray.models.model_defaults import fill_model_defaults
from tests.families.published_sizes import PUBLISHED_MODELS
from tests.families.tiny_models import build_tiny, change_json

RECIPE = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("chroma", tmp_path_factory.mktemp("chroma") / "base")


@pytest.fixture(scope="module")
def parts(base: Path) -> Components:
    return load_components(base)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.text_encoder=true", "train.text_encoder=true is not for Chroma"),
        ("train.method=kv", "train.method=kv is not for Chroma.*take full or lora"),
        ("identifier.kind=learned", "identifier.kind=learned is not for"),
        ("loss.min_snr_gamma=5", "loss.min_snr_gamma=5.0 is not for"),
        ("sample.solver=ddim", "sample.solver=ddim is not for.*take euler, heun, dpmpp_2m"),
        ("sample.clip_skip=1", "sample.clip_skip=1 is not for"),
    ],
)
def test_what_it_can_t_do_is_refused_by_name(base: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_method(parse_config(RECIPE, "x", [setting]), base)


def test_one_token_of_padding_is_read_behind_a_prompt(parts: Components) -> None:
    encode, tokenizer = parts.functions.encode_prompt, parts.tokenizer
    ids = tokenizer("a robot").input_ids
    row = encode(parts, parts.text_forwards, "a robot")["hidden"]
    assert row.shape == (1, len(ids) + 1, 16)
    alone = parts.text_encoder(torch.tensor([ids])).last_hidden_state
    assert torch.allclose(row[:, :-1], alone, atol=1e-5)
    with pytest.raises(ConfigError, match=r"the prompt 'robot robot.* takes 6\d\d tokens"):
        encode(parts, parts.text_forwards, "robot " * 100)


def test_shapes_are_those_of_the_published_network() -> None:
    model = PUBLISHED_MODELS["chroma"]
    network = model.build_on_meta("transformer")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    config = model.part_config("transformer")
    counts = {key: value for key, value in config.items() if type(value) is int}
    assert expect_transformer(counts) == shapes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"axes_dims_rope": [4, 4, 4]}, "must add up to attention_head_dim=16"),
        ({"out_channels": 4}, "is shown images .*take Chroma1-HD"),
        ({"approximator_layers": 3}, "distilled_guidance_layer.layers.2.linear_1.weight is"),
        ({"approximator_hidden_dim": "wide"}, "approximator_hidden_dim='wide' must be a whole"),
    ],
)
def test_another_transformer_is_refused(base: Path, keys: dict[str, object], message: str) -> None:
    path = base / "transformer" / "config.json"
    before = path.read_text()
    change_json(path, keys)
    try:
        with pytest.raises(ConfigError, match=message):
            check_networks(base)
    finally:
        path.write_text(before)
    check_networks(base)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("chroma")])
def test_recipes_by_memory_ask_for_what_the_family_has(name: str) -> None:
    config = load_config(name, ["subject.photos=p", "subject.class_noun=dog"])
    assert config.model.uri == "lodestones/Chroma1-HD"
    check_support(config, FAMILY)
    assert fill_model_defaults(config, FAMILY).prior.guidance_scale == 5.0
    assert check_rates(config) == []
