from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.traced_forward import WARMUP_CALLS
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.callbacks.samples import TrainingImageSampler
from dreambooth_ray.training.module import DreamBoothModule


def module_of(model: Path, *overrides: str) -> DreamBoothModule:
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))
    parts = load_components(model)
    apply_train_method(config, parts)
    return DreamBoothModule(config, parts)


def test_a_frozen_text_encoder_is_not_even_held(tiny_model: Path) -> None:
    module = module_of(tiny_model, "train.text_encoder=false")
    optimised = module.configure_optimizers()["optimizer"].param_groups[0]["params"]
    assert len(optimised) == len(list(module.denoiser.parameters()))
    assert module.text_encoders == {}


def test_a_checkpoint_holds_what_is_trained_and_is_compared_at_load(tiny_model: Path) -> None:
    module = module_of(tiny_model, "train.method=lora", "train.text_encoder=true")
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    module.on_load_checkpoint(checkpoint)
    other = module_of(tiny_model, "train.method=lora")
    with pytest.raises(CheckpointError, match=r"text_encoder\..*another train\.method"):
        other.on_load_checkpoint(checkpoint)


def test_both_parts_are_optimised_by_default(tiny_model: Path) -> None:
    module = module_of(tiny_model)
    optimised = module.configure_optimizers()["optimizer"].param_groups[0]["params"]
    assert len(optimised) == len(list(module.parameters()))


def test_clipping_bounds_the_gradient_and_keeps_the_norm_from_before(tiny_model: Path) -> None:
    module = module_of(tiny_model, "train.max_grad_norm=0.5")
    for p in module.parameters():
        p.grad = torch.full_like(p, 0.01)
    before = torch.cat([p.grad.flatten().double() for p in module.parameters()]).norm()  # type: ignore[union-attr]
    module.configure_gradient_clipping(module.configure_optimizers()["optimizer"])
    after = torch.cat([p.grad.flatten().double() for p in module.parameters()]).norm()  # type: ignore[union-attr]
    assert float(module._grad_norm) == pytest.approx(float(before), rel=1e-2)  # type: ignore[arg-type]
    assert float(after) == pytest.approx(0.5, rel=1e-3)


def test_images_seen_count_both_halves(tiny_model: Path) -> None:
    for overrides, num_images in (((), 6), (("prior.count=0",), 3)):
        module = module_of(tiny_model, "train.batch_size=3", *overrides)
        assert module.config.total_images_per_step == num_images


@pytest.mark.parametrize("method", ["full", "lora", "kv"])
def test_a_recorded_training_takes_the_very_same_steps(tiny_model: Path, method: str) -> None:
    weights = []
    for steps in (WARMUP_CALLS + 1, WARMUP_CALLS):
        module = module_of(tiny_model, f"train.method={method}", f"train.steps={steps}")
        assert (module._forwards._traced is not None) == (steps > WARMUP_CALLS)
        optimizer = module.configure_optimizers()["optimizer"]
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            latents_and_noise = [torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2)]
            timesteps = torch.randint(0, 999, (2,), generator=generator)
            ids = torch.full((2, 16), 5)
            frames = torch.zeros(2, 6, dtype=torch.int64)
            captions = (
                (Conditioning({"input_ids": ids}), None)
                if module.text_encoders
                else (None, Conditioning({"hidden": torch.ones(2, 16, 32)}))
            )
            batch = Batch(*latents_and_noise, timesteps, *captions, frames, 1, step)
            module.compute_errors(batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([p.detach().clone() for p in module.parameters()])
    assert all(map(torch.equal, *weights))


def test_samples_leave_the_weights_in_training_as_they_were(tiny_model: Path) -> None:
    settings = ("train.method=lora", "train.resolution=64", "sample.num_inference_steps=1")
    module = module_of(tiny_model, *settings)
    for weight in module.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    before = {n: w.detach().clone() for n, w in module.named_parameters()}
    (sample,) = TrainingImageSampler(module.config, tiny_model).sample_images(module)
    assert sample[1].shape == (64, 64, 3)
    for name, weight in module.named_parameters():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name])
    assert module.denoiser.training
