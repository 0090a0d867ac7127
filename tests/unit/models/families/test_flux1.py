from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.families.flux1_functions import TRAINING_GUIDANCE
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings, embed_caption_tokens
from tests.families.tiny_models import build_tiny

RECIPE = "subject: {photos: p, class_noun: robot}\ntrain: {method: lora}"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("flux1-dev", tmp_path_factory.mktemp("flux1") / "dev")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("flux1-schnell", tmp_path_factory.mktemp("flux1") / "schnell")


def test_schnell_is_sampled_without_guidance_and_never_trained(schnell: Path) -> None:
    assert find_family(schnell).sampling_defaults["num_inference_steps"] == 4
    with pytest.raises(ConfigError, match=r"FLUX.1 schnell: it is distilled.*train FLUX.1-dev"):
        check_training_settings(parse_config(RECIPE, "x", []), schnell)
    parts = load_components(schnell)
    row = parts.functions.encode_prompt(parts, parts.text_forward_functions, "a robot")
    assert row["hidden"].shape[1] == 256
    assert "guidance" not in row.tensors
    engine = Engine(parts)
    engine.submit(Request("a robot", 0))
    with pytest.raises(ConfigError, match=r"guidance_scale=4 is not for FLUX.1 schnell"):
        engine.submit(Request("a robot", 0, guidance_scale=4.0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.method=kv", "train.method=kv is not for FLUX.1 dev.*take full or lora"),
        ("loss.min_snr_gamma=5", "loss.min_snr_gamma=5.0 is not for"),
        ("sample.solver=ddim", "sample.solver=ddim is not for.*take euler, heun, dpmpp_2m"),
        ("sample.clip_skip=1", "sample.clip_skip=1 is not for"),
        ("sample.guidance_rescale=0.5", "sample.guidance_rescale=0.5 is not for FLUX.1 dev"),
        ("prior.guidance_every=2", "prior.guidance_every=2 is not for FLUX.1 dev"),
    ],
)
def test_what_it_can_t_do_is_refused_by_name(dev: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_training_settings(parse_config(RECIPE, "x", [setting]), dev)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"negative_prompt": "blue"}, "negative_prompt"),
        ({"guidance_interval": (0.2, 0.8)}, "guidance_interval"),
        ({"guidance_rescale": 0.5}, "guidance_rescale"),
        ({"guidance_every": 2}, "guidance_every"),
    ],
)
def test_there_is_no_prediction_without_the_prompt(
    dev: Path, fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not for FLUX.1 dev; leave it out"):
        Engine(load_components(dev)).submit(Request("a robot", 0, **fields))


def test_t5_reads_a_prompt_whole_or_refuses_it(dev: Path) -> None:
    """CLIP's pooled state is that of its own window, whatever follows."""
    parts = load_components(dev)
    encode = parts.functions.encode_prompt
    first, second = (
        encode(parts, parts.text_forward_functions, "robot " * 80 + end) for end in ("red", "blue")
    )
    assert first["hidden"].shape == (1, 512, 16)
    assert torch.equal(first["pooled"], second["pooled"])
    assert not torch.equal(first["hidden"], second["hidden"])
    with pytest.raises(ConfigError, match=r"'robot robot.* takes 6\d\d tokens.*reads 512"):
        encode(parts, parts.text_forward_functions, "robot " * 100)


def test_training_tells_the_script_s_guidance_and_sampling_the_request_s(dev: Path) -> None:
    parts = load_components(dev)
    row = parts.functions.encode_prompt(parts, parts.text_forward_functions, "a robot")
    assert row["guidance"].tolist() == [TRAINING_GUIDANCE]
    assert parts.functions.tell_guidance(row, 2.0)["guidance"].tolist() == [2.0]


def test_clip_is_trained_and_t5_is_read_once(dev: Path) -> None:
    parts = load_components(dev)
    apply_train_method(parse_config(RECIPE, "x", ["train.text_encoder=false"]), parts)
    encoded = CaptionEmbeddings(parts, ["a robot", "a cat"]).conditioning
    config = parse_config(RECIPE, "x", ["train.text_encoder=true"])
    check_training_settings(config, dev)
    parts = load_components(dev)
    apply_train_method(config, parts)
    captions = CaptionEmbeddings(parts, ["a robot", "a cat"])
    assert captions.tokens is not None
    assert encoded is not None
    assert {name: tuple(t.shape) for name, t in captions.tokens.tensors.items()} == {
        "input_ids": (2, 77),
        "hidden": (2, 512, 16),
    }
    # Adapters begin without effect.
    embedded = embed_caption_tokens(parts, captions.tokens)
    assert all(torch.equal(embedded[name], encoded[name]) for name in encoded.tensors)
    trained = {
        n for n, p in parts.text_encoders["text_encoder"].named_parameters() if p.requires_grad
    }
    assert len(trained) == 2 * 4 * 3
    assert not any(p.requires_grad for p in parts.text_encoders["text_encoder_2"].parameters())
