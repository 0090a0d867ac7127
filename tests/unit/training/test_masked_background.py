"""Outside of masks the base model's output is kept: train.mask_background_target=output."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from dreambooth_ray.models.components import Components
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.module import DreamBoothModule
from tests.unit.training.fitted import Fitted
from tests.unit.training.test_output_preservation import (
    METHODS,
    make_step,
    move_weights,
    read_gradients,
    read_ids,
    tokenize,
)

WEIGHT = 0.4
# Of METHODS: what a test of every day has of them.
DAILY = "full", "lora", "word"
KEPT = (
    "prior.kind=images", f"train.mask_background={WEIGHT}", "train.mask_background_target=output",
)  # fmt: skip


@pytest.fixture(scope="module")
def masked_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With masks whose edges cross latents; the last photograph has none."""
    folder = tmp_path_factory.mktemp("masked")
    paths = sorted(photos.glob("*.png"))
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    for path in paths[:-1]:
        mask = Image.new("L", Image.open(path).size)
        ImageDraw.Draw(mask).ellipse((20, 25, 71, 79), fill=255)
        mask.save(folder / f"{path.stem}.mask.png")
    return folder


def make_module(
    model: Path, photos: Path, priors: Store, *overrides: str
) -> tuple[DreamBoothModule, Components, Batch]:
    """As `make_step`; of a batch with a mask."""
    module, parts, batch = make_step(model, photos, priors, *KEPT, "train.batch_size=3", *overrides)
    assert batch.masks is not None
    assert bool(((batch.masks > 0) & (batch.masks < 1)).any())
    return module, parts, batch


def without_insides(batch: Batch) -> Batch:
    """As if all of its images were outside their masks."""
    assert batch.masks is not None
    return replace(batch, masks=torch.zeros_like(batch.masks))


@pytest.mark.parametrize(
    ("method", "num_class_images"),
    [
        *(
            pytest.param(method, 0, marks=() if method in DAILY else pytest.mark.fault)
            for method in METHODS
        ),
        ("lora", 5),
    ],
)
def test_gradients_are_those_of_two_explicit_forwards(
    tiny_model: Path, masked_photos: Path, priors: Store, method: str, num_class_images: int
) -> None:
    count = f"prior.count={num_class_images}"
    module, parts, batch = make_module(tiny_model, masked_photos, priors, *METHODS[method], count)
    with torch.no_grad():
        errors = module.compute_errors(without_insides(batch))
    if num_class_images:
        # Predicted in a batch of another size than the base model's.
        assert float(errors[:3].max()) < 1e-9 and float(errors[3:].min()) > 1e-2
    else:
        assert errors.tolist() == [0.0] * 3  # nothing is learnt yet
    base_unet, base_text = copy.deepcopy(parts.unet), copy.deepcopy(parts.text_encoder)
    move_weights(module)
    loss, _ = module.compute_loss(batch)
    loss.backward()
    gradients = read_gradients(module)
    module.zero_grad()

    noisy = parts.schedule.add_noise(batch.latents, batch.noise, batch.times)
    ids, num, mask = read_ids(parts, batch), batch.num_photographs, batch.masks
    assert mask is not None
    prediction = parts.unet(noisy, batch.times, parts.text_encoder(ids).last_hidden_state).sample
    with torch.no_grad():
        hidden = base_text(ids[:num]).last_hidden_state
        target = base_unet(noisy[:num], batch.times[:num], hidden).sample
    inside = mask * (prediction - batch.noise).square()
    outside = (1 - mask[:num]) * (prediction[:num] - target).square()
    weights = (mask + WEIGHT * (1 - mask)).sum(dim=(1, 2, 3)) * prediction.shape[1]
    sums = inside.sum(dim=(1, 2, 3))
    errors = (sums[:num] + WEIGHT * outside.sum(dim=(1, 2, 3))) / weights[:num]
    expected = errors.mean()
    if num_class_images:
        expected = expected + (sums[num:] / weights[num:]).mean()
    assert float(outside.sum().detach()) > 1e-4
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    expected.backward()
    expected_gradients = read_gradients(module)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert float((gradient - expected_gradients[name]).abs().max()) <= 1e-6, name


@pytest.mark.parametrize(("method", "most"), [("frozen text", 0.0), ("lora", 1e-4)])
def test_in_half_the_base_model_is_computed_in_half(
    tiny_model: Path, masked_photos: Path, priors: Store, method: str, most: float
) -> None:
    """A trained text encoder's captions are embedded in half, and the base model's in float32."""
    settings = *METHODS[method], "prior.count=0", "train.precision=bf16-mixed"
    module, _, batch = make_module(tiny_model, masked_photos, priors, *settings)
    with torch.no_grad():
        assert float(module.compute_errors(without_insides(batch)).max()) <= most


def test_what_is_inside_counts_as_without(
    tiny_model: Path, masked_photos: Path, priors: Store
) -> None:
    """Whole masks leave nothing to keep."""
    module, _, batch = make_module(tiny_model, masked_photos, priors)
    assert batch.masks is not None
    whole = replace(batch, masks=torch.ones_like(batch.masks))
    unmasked = replace(batch, masks=None, base_conditioning=None)
    assert torch.allclose(module.compute_errors(whole), module.compute_errors(unmasked))


def test_it_is_kept_beside_the_output_of_captions(
    tiny_model: Path, masked_photos: Path, priors: Store
) -> None:
    """Both are of the base model, each under its own captions."""
    module, parts, batch = make_module(tiny_model, masked_photos, priors, "prior.kind=output")
    base_unet, base_text = copy.deepcopy(parts.unet), copy.deepcopy(parts.text_encoder)
    move_weights(module)
    with torch.no_grad():
        errors, output_errors = module._errors.compute_all_errors(batch)
        noisy = parts.schedule.add_noise(batch.latents, batch.noise, batch.times)

        def predict(text: str, networks: tuple[Tensor, ...]) -> Tensor:
            unet, text_encoder = networks
            hidden = text_encoder(tokenize(parts, [text] * 3)).last_hidden_state
            sample: Tensor = unet(noisy, batch.times, hidden).sample
            return sample

        trained, base = (parts.unet, parts.text_encoder), (base_unet, base_text)
        kept = predict("a robot", trained) - predict("a robot", base)
        prediction = predict("a sks robot", trained)
        mask = batch.masks
        assert mask is not None
        elementwise = (
            mask * (prediction - batch.noise).square()
            + WEIGHT * (1 - mask) * (prediction - predict("a sks robot", base)).square()
        )
        weights = (mask + WEIGHT * (1 - mask)).sum(dim=(1, 2, 3)) * prediction.shape[1]
    assert output_errors is not None
    assert torch.allclose(output_errors, kept.square().mean(dim=(1, 2, 3)), atol=1e-6)
    assert torch.allclose(errors, elementwise.sum(dim=(1, 2, 3)) / weights, atol=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.method=lora", "prior.count=0"),
        ("train.method=full", "train.accumulate=2", "loss.huber_delta=0.3"),
        *(
            pytest.param(rest, marks=pytest.mark.fault)
            for rest in (
                ("train.method=lora", "identifier.kind=learned", "loss.caption_dropout=0.5"),
                ("train.method=kv", "prior.kind=both", "train.flip=true", "train.ema_decay=0.9"),
                ("train.method=lora", "train.buckets=true", "train.bucket_step_px=16",
                 "prior.count=0"),
            )
        ),
    ],
    ids=["lora", "full", "word", "both", "buckets"],
)  # fmt: skip
def test_a_resumed_run_goes_on_with_the_same_numbers(
    tiny_model: Path, masked_photos: Path, priors: Store, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides = (*KEPT, *overrides, "train.steps=4", "tracking.loggers=[]")
    state = tmp_path / "state.ckpt"
    whole = Fitted(tiny_model, masked_photos, priors, *overrides, save=state).watch.records
    resumed = Fitted(tiny_model, masked_photos, priors, *overrides, resume=state).watch.records
    assert resumed == whole[2:]


@pytest.mark.parametrize(("setting", "value"), [("null", "null"), ("0", "0")])
def test_without_a_weight_it_is_refused(setting: str, value: str) -> None:
    text = "subject: {photos: p, class_noun: dog}"
    words = rf"train\.mask_background_target=output .* train\.mask_background={value} leaves"
    with pytest.raises(ConfigError, match=words):
        parse_config(text, "x", [*KEPT, f"train.mask_background={setting}"])


def test_memory_counts_the_copy(tiny_model: Path) -> None:
    text = "subject: {photos: p, class_noun: dog}"
    kept = parse_config(text, "x", [*KEPT, "train.method=full"])
    plain = parse_config(text, "x", ["train.method=full"])
    frozen = [estimate_training_footprint(c, tiny_model).frozen_bytes for c in (kept, plain)]
    assert frozen[0] > frozen[1]
