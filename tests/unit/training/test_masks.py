"""Masked loss: weights go with latents, and errors are means by them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.objective.loss import compute_sample_errors, weigh_masks
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.image_pools import scale_mask
from dreambooth_ray.training.module import DreamBoothModule


@pytest.fixture
def masked_photos(tmp_path: Path) -> Path:
    """The left half of each is the subject's."""
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        pixels = torch.randint(0, 256, (64, 64, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        mask.save(tmp_path / f"{index}.mask.png")
    return tmp_path


def make_config(photos: Path, background: object, *overrides: str) -> Config:
    text = f"subject: {{photos: {photos}, class_noun: robot}}"
    settings = "train.resolution=64", f"train.mask_background={background}", "prior.count=0"
    return parse_config(text, "x", [*settings, *overrides])


def test_a_latent_has_the_share_of_its_area_that_is_masked() -> None:
    mask = Image.new("L", (8, 4), 0)
    mask.paste(255, (0, 0, 3, 4))
    masks = scale_mask(mask, (2, 4), True)
    row = torch.tensor([1.0, 0.5, 0.0, 0.0])
    assert torch.allclose(masks[0, 0], row.expand(2, 4))
    assert torch.allclose(masks[1, 0], row.flip(0).expand(2, 4))
    assert torch.allclose(weigh_masks(masks[0, 0, :1], 0.2), torch.tensor([[1.0, 0.6, 0.2, 0.2]]))


@pytest.mark.parametrize("huber_delta", [None, 0.5])
def test_an_error_is_the_mean_by_area(huber_delta: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 3, 4, 6, generator=generator)
    weights = torch.zeros(2, 1, 4, 6)
    weights[0, :, :2] = 1
    weights[1] = 0.3
    errors = compute_sample_errors(prediction, target, huber_delta, weights)
    inside = compute_sample_errors(prediction[:1, :, :2], target[:1, :, :2], huber_delta)
    whole = compute_sample_errors(prediction[1:], target[1:], huber_delta)
    assert torch.allclose(errors, torch.cat([inside, whole]))


def test_weights_are_mirrored_with_their_latents(masked_photos: Path, toy_model: Path) -> None:
    config = make_config(masked_photos, 0, "train.flip=true")
    photographs = [read_photographs_for_subject_config(config, config.subject)]
    dataset = TrainingDataset(config, load_components(toy_model), photographs, None, (0, 1))
    views = [image for views in dataset._photographs[0].images for image in views]
    seen = set()
    for step in range(8):
        batch = dataset.make_batch(step)
        assert batch.masks is not None
        for latents, weights in zip(batch.latents, batch.masks, strict=True):
            distances = [float((latents - i.latents[f, 0]).norm()) for i in views for f in (0, 1)]
            is_mirrored = distances.index(min(distances)) % 2 == 1
            width = weights.shape[-1]
            expected = torch.zeros_like(weights)
            expected[..., : width // 2] = 1
            assert torch.equal(weights, expected.flip(-1) if is_mirrored else expected)
            seen.add(is_mirrored)
    assert seen == {False, True}


def test_only_what_a_mask_covers_counts(masked_photos: Path, toy_model: Path) -> None:
    parts = load_components(toy_model)
    errors = {}
    for background in (0, 1, "null"):
        config = make_config(masked_photos, background)
        photographs = [read_photographs_for_subject_config(config, config.subject)]
        dataset = TrainingDataset(config, parts, photographs, None, (0, 1))
        with torch.no_grad():
            errors[background] = DreamBoothModule(config, parts).compute_errors(
                dataset.make_batch(3)
            )
    assert torch.allclose(errors[1], errors["null"], rtol=1e-5)
    assert not torch.allclose(errors[0], errors["null"], rtol=1e-3)
