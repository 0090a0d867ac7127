import importlib.util
from typing import Any

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import Quantization
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.quantization import count_frozen_bytes, quantize_linear_layers
from dreambooth_ray.models.trainable_params import apply_train_method


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


@pytest.mark.parametrize(
    ("kind", "package", "worst_error"),
    [("int8", "torchao", 0.02), ("fp8", "torchao", 0.1), ("nf4", "bitsandbytes", 0.3)],
)
def test_adapters_train_over_quantized_layers(
    kind: str, package: str, worst_error: float, toy_parts: Components
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'dreambooth-ray[gpu]'")
    inputs = torch.randn(2, 8, 8, 8), torch.tensor([10, 600]), torch.randn(2, 32, 128)
    with torch.no_grad():
        exact = toy_parts.unet(*inputs, return_dict=False)[0]
    config = make_config("train.method=lora", f"model.quantization={kind}")
    apply_train_method(config, toy_parts, quantizes=True)
    prediction = toy_parts.unet(*inputs, return_dict=False)[0]
    error = (prediction - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < worst_error
    prediction.square().mean().backward()
    trained = [(n, w) for n, w in toy_parts.unet.named_parameters() if w.requires_grad]
    assert trained
    assert all("lora_" in name for name, _ in trained)
    assert all(weight.grad is not None for _, weight in trained)


def count_held_bytes(weight: Any) -> int:
    """Of a weight, with the scales of a quantized one."""
    if hasattr(weight, "__tensor_flatten__"):
        return sum(count_held_bytes(getattr(weight, n)) for n in weight.__tensor_flatten__()[0])
    state = getattr(weight, "quant_state", None)
    return int(weight.nbytes) + (int(state.absmax.nbytes) if state is not None else 0)


@pytest.mark.parametrize(
    ("kind", "package"), [("int8", "torchao"), ("fp8", "torchao"), ("nf4", "bitsandbytes")]
)
def test_bytes_are_counted_as_quantized_weights_take_them(
    kind: Quantization, package: str, toy_parts: Components
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'dreambooth-ray[gpu]'")
    unet = toy_parts.unet.requires_grad_(False)
    counted = count_frozen_bytes(unet, kind)
    quantize_linear_layers(unet, kind, torch.float32)
    assert counted == pytest.approx(sum(count_held_bytes(w) for w in unet.parameters()), rel=0.02)


def test_small_and_time_layers_are_counted_whole(toy_parts: Components) -> None:
    unet = toy_parts.unet.requires_grad_(False)
    plain = count_frozen_bytes(unet, "none")
    assert plain == sum(w.nbytes for w in unet.parameters())
    layers = torch.nn.ModuleDict({"time_embedding": torch.nn.Linear(64, 64).requires_grad_(False),
                                  "small": torch.nn.Linear(63, 64).requires_grad_(False),
                                  "to_q": torch.nn.Linear(64, 64).requires_grad_(False),
                                  "trained": torch.nn.Linear(64, 64)})  # fmt: skip
    whole = 4 * (64 * 64 + 64 + 63 * 64 + 64 + 64)
    assert count_frozen_bytes(layers, "nf4") == int(whole + 0.53 * 64 * 64)


def test_only_training_quantizes(toy_parts: Components) -> None:
    apply_train_method(make_config("train.method=lora", "model.quantization=int8"), toy_parts)
    assert all(type(w.data) is torch.Tensor for w in toy_parts.unet.parameters())
    assert quantize_linear_layers(toy_parts.unet, "none", torch.float32) == 0


@pytest.mark.parametrize(
    ("settings", "obstacle"),
    [
        (["train.method=full"], "train.method=full trains the weights"),
        (["train.method=kv"], "train.method=kv trains the weights"),
        (["train.method=lora", "train.lora.dora=true"], "train.lora.dora needs the norms"),
        (["train.method=lora", "train.strategy=fsdp2"], "train.strategy=fsdp2 shards"),
        (["train.method=lora", "train.compile=blocks"], "train.compile=blocks"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_name(settings: list[str], obstacle: str) -> None:
    with pytest.raises(ConfigError, match=f"model.quantization=int8 and {obstacle}"):
        make_config("model.quantization=int8", *settings)
