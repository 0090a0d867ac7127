from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError, ConfigError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_train_method, load_trainable_params


def config_of(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


def trained(parts: Components) -> dict[str, list[str]]:
    return {
        part: [n for n, p in getattr(parts, part).named_parameters() if p.requires_grad]
        for part in ("unet", "text_encoder")
    }


def test_keys_and_values_alone(tiny_model: Path) -> None:
    parts = load_components(tiny_model)
    apply_train_method(config_of("train.method=kv"), parts)
    names = trained(parts)
    layers = [n for n, _ in parts.unet.named_modules() if n.endswith((".to_k", ".to_v"))]
    assert sorted(names["unet"]) == sorted(f"{n}.weight" for n in layers if "attn2" in n)
    assert names["text_encoder"] == []


@pytest.mark.parametrize(
    ("overrides", "unet", "text"),
    [
        ([], True, True),
        (["train.text_encoder=false"], True, False),
        (["train.unet=false"], False, True),
        (["train.method=lora"], True, False),
        (["train.method=lora", "train.text_encoder=true"], True, True),
        (["train.method=lora", "train.text_encoder=true", "train.unet=false"], False, True),
    ],
)
def test_parts_move_as_configured(
    tiny_model: Path, overrides: list[str], unet: bool, text: bool
) -> None:
    parts = load_components(tiny_model)
    apply_train_method(config_of(*overrides), parts)
    names = trained(parts)
    assert (bool(names["unet"]), bool(names["text_encoder"])) == (unet, text)
    if "train.method=lora" in overrides:
        assert all(".lora_" in n for part in names.values() for n in part)


def test_adapters_start_without_effect_and_depend_on_the_seed_alone(tiny_model: Path) -> None:
    def adapted_parts(seed: int) -> Components:
        torch.manual_seed(torch.seed() % 2**31)
        parts = load_components(tiny_model)
        apply_train_method(config_of("train.method=lora", f"seed={seed}"), parts)
        return parts

    one, two, other = adapted_parts(1), adapted_parts(1), adapted_parts(2)
    plain = load_components(tiny_model).unet
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 32)
    with torch.no_grad():
        assert torch.equal(one.unet(*inputs).sample, plain(*inputs).sample)
    first = {n: p for n, p in one.unet.named_parameters() if "lora_A" in n}
    assert all(torch.equal(p, two.unet.get_parameter(n)) for n, p in first.items())
    assert not any(torch.equal(p, other.unet.get_parameter(n)) for n, p in first.items())


def test_weights_of_another_method_are_refused(tiny_model: Path) -> None:
    parts = load_components(tiny_model)
    apply_train_method(config_of("train.method=kv"), parts)
    with pytest.raises(CheckpointError, match=r"other weights of unet.*another train\.method"):
        load_trainable_params(parts, {"unet": dict(parts.unet.state_dict())})


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["train.method=kv", "train.text_encoder=true"], "train.text_encoder=false"),
        (["train.unet=false", "train.text_encoder=false"], "nothing to train"),
        (["train.method=lora", "train.unet=false"], "nothing to train"),
        (["train.method=dreambooth"], "train.method"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        config_of(*overrides)
