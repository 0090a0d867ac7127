"""The base model's output is kept: prior.kind output and both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.prediction_errors import PredictionErrorCalculator
from tests.unit.training.fitted import SMALL, Fitted

METHODS = {
    "full": ("train.method=full",),
    "frozen text": ("train.method=full", "train.text_encoder=false"),
    "lora": ("train.method=lora", "train.text_encoder=true"),
    "dora": ("train.method=lora", "train.lora.dora=true"),
    "kv": ("train.method=kv",),
    "word": ("train.method=lora", "identifier.kind=learned"),
}


def make_step(
    model: Path, photos: Path, priors: Store, *overrides: str
) -> tuple[DreamBoothModule, Components, Batch]:
    """A module, its trained parts, and the batch of step 0."""
    text = f"subject: {{photos: {photos}, class_noun: robot}}"
    config = parse_config(text, "x", [*SMALL, "prior.kind=output", *overrides])
    parts = load_components(model)
    apply_train_method(config, parts)
    class_images = PriorSet(priors, config.prior.num_images) if config.prior.num_images else None
    photographs = read_photographs_for_subject_config(config, config.subject)
    dataset = TrainingDataset(config, parts, [photographs], class_images, (0, 1))
    module = DreamBoothModule(config, parts)
    return module, parts, dataset.make_batch(0)


def move_weights(module: DreamBoothModule) -> None:
    """As a few steps would, so that there is something to keep."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


def read_gradients(module: DreamBoothModule) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def tokenize(parts: Components, texts: list[str]) -> Tensor:
    ids: Tensor = parts.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    return ids


def read_ids(parts: Components, batch: Batch) -> Tensor:
    """Token ids of a batch's captions, which it has itself where a text encoder is trained."""
    if batch.tokens is not None:
        return batch.tokens["input_ids"]
    num_class_images = len(batch.latents) - batch.num_photographs
    return tokenize(parts, ["a sks robot"] * batch.num_photographs + ["a robot"] * num_class_images)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["output", "both"])
def test_loss_and_gradients_are_those_of_two_explicit_forwards(
    tiny_model: Path, photos: Path, priors: Store, method: str, kind: str
) -> None:
    module, parts, batch = make_step(
        tiny_model, photos, priors, *METHODS[method], f"prior.kind={kind}", "prior.weight=0.5"
    )
    move_weights(module)
    loss, part_losses = module.compute_loss(batch)
    loss.backward()
    gradients = read_gradients(module)
    module.zero_grad()

    base = load_components(tiny_model)
    noisy = parts.schedule.add_noise(batch.latents, batch.noise, batch.times)
    num = batch.num_photographs
    hidden = parts.text_encoder(read_ids(base, batch)).last_hidden_state
    errors = (parts.unet(noisy, batch.times, hidden).sample - batch.noise).square()
    kept_ids = tokenize(base, ["a robot"] * num)
    kept_hidden = parts.text_encoder(kept_ids).last_hidden_state
    kept = parts.unet(noisy[:num], batch.times[:num], kept_hidden).sample
    with torch.no_grad():
        base_hidden = base.text_encoder(kept_ids).last_hidden_state
        target = base.unet(noisy[:num], batch.times[:num], base_hidden).sample
    output = F.mse_loss(kept, target)
    expected_parts = [errors[:num].mean(), *([errors[num:].mean()] if kind == "both" else [])]
    weights = [1.0, *([0.5] if kind == "both" else []), 5.0]
    expected = sum(w * part for w, part in zip(weights, [*expected_parts, output], strict=True))
    assert part_losses.tolist() == pytest.approx(
        [float(part.detach()) for part in (*expected_parts, output)], abs=1e-6
    )
    assert isinstance(expected, Tensor) and float(output.detach()) > 1e-6
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    expected.backward()
    expected_gradients = read_gradients(module)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("method", ["frozen text", "lora", "kv", "word"])
def test_with_nothing_learnt_the_loss_is_exactly_zero(
    tiny_model: Path, photos: Path, priors: Store, method: str
) -> None:
    module, _, batch = make_step(tiny_model, photos, priors, *METHODS[method], "train.batch_size=1")
    _, (_, output) = module.compute_loss(batch)
    assert float(output.detach()) == 0.0


def test_the_base_model_stays_takes_no_memory_again_and_is_in_no_checkpoint(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    module, parts, _ = make_step(tiny_model, photos, priors, *METHODS["lora"])
    (base,) = module._base_denoisers
    shared = {weight.data_ptr() for weight in parts.unet.parameters()}
    assert all(weight.data_ptr() in shared for weight in base.parameters())
    assert not any("base_denoiser" in name for name in module.state_dict())
    full, parts, batch = make_step(tiny_model, photos, priors, *METHODS["full"])
    (base,) = full._base_denoisers
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    full.compute_loss(batch)[0].backward()
    move_weights(full)
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters())
    assert all(weight.grad is None for weight in base.parameters())


def test_a_gpu_computes_the_same_in_one_forward(
    tiny_model: Path, photos: Path, priors: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, batch = make_step(tiny_model, photos, priors, "prior.kind=both")
    move_weights(module)
    _, apart = module.compute_loss(batch)
    monkeypatch.setattr(PredictionErrorCalculator, "_is_on_gpu", lambda *_: True)
    _, joined = module.compute_loss(batch)
    assert joined.tolist() == pytest.approx(apart.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.method=lora", "prior.kind=output"),
        ("train.method=full", "prior.kind=both", "train.accumulate=2"),
        ("train.method=kv", "prior.kind=output", "loss.min_snr_gamma=5", "train.ema_decay=0.9"),
        ("train.method=lora", "prior.kind=output", "loss.caption_dropout=1"),
    ],
    ids=["lora", "full", "kv", "dropped captions"],
)
def test_a_resumed_run_goes_on_with_the_same_numbers(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides = (*overrides, "train.steps=4", "tracking.loggers=[]")
    state = tmp_path / "state.ckpt"
    whole = Fitted(tiny_model, photos, priors, *overrides, save=state).watch.records
    resumed = Fitted(tiny_model, photos, priors, *overrides, resume=state).watch.records
    assert resumed == whole[2:]
    assert ("output_loss" in whole[0]) == ("prior.kind=both" in overrides)
    kept = "output_loss" if "output_loss" in whole[0] else "prior_loss"
    assert whole[-1][kept] > 0
    assert whole[-1]["loss"] == pytest.approx(_add_up(whole[-1]), rel=1e-6)


def _add_up(record: dict[str, Any]) -> float:
    if "output_loss" not in record:
        return float(record["instance_loss"] + 5 * record["prior_loss"])
    return float(record["instance_loss"] + record["prior_loss"] + 5 * record["output_loss"])
