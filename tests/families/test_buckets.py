"""A step on photographs of two shapes, by every family that is trained."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import check_image_sizes
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from tests.families.proven_families import TRAINED_MODELS


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square one and a lying one."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    for index, shape in enumerate([(192, 192, 3), (144, 256, 3)]):
        pixels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_a_photograph_counts_as_it_does_alone(
    name: str, tiny_directories: dict[str, Path], photographs: Path
) -> None:
    directory = tiny_directories[name]
    step = max(16, find_family(directory).size_multiple(directory))
    config = parse_config(
        f"subject: {{photos: {photographs}, class_noun: robot}}", "x",
        [
            "train.method=lora", "train.lora.rank=2", f"train.resolution={4 * step}",
            "prior.count=0", "train.buckets=true", f"train.bucket_step_px={step}",
            "train.batch_size=4",
        ],
    )  # fmt: skip
    check_image_sizes(directory, config.train)
    parts = load_components(directory)
    apply_train_method(config, parts)
    read = [read_photographs_for_subject_config(config, config.subject)]
    shapes = [photograph.shape for photograph in read[0]]
    assert shapes == [(4 * step, 4 * step), (5 * step, 3 * step)]
    module = DreamBoothModule(config, parts)
    whole, *shares = (
        TrainingDataset(config, parts, read, None, place).make_batch(2)
        for place in [(0, 1), (0, 4), (1, 4), (2, 4), (3, 4)]
    )
    assert len(whole.same_shape_batches) == 2
    loss, _ = module.compute_loss(whole)
    losses = torch.stack([module.compute_loss(share)[0] for share in shares])
    assert torch.allclose(loss, losses.mean(), rtol=1e-4)
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


def test_what_a_model_can_not_take_is_refused(tiny_directories: dict[str, Path]) -> None:
    def check(name: str, *overrides: str) -> None:
        text = "subject: {photos: x, class_noun: robot}\ntrain: {buckets: true}"
        config = parse_config(text, "x", list(overrides))
        check_image_sizes(tiny_directories[name], config.train)

    with pytest.raises(ConfigError, match=r"bucket_step_px=8 is not a multiple of 16.*try 16"):
        check("flux1-dev", "train.resolution=64", "train.bucket_step_px=8")
    with pytest.raises(ConfigError, match=r"train\.resolution=72 is not a multiple of 16"):
        check("flux1-dev", "train.resolution=[64, 72]", "train.bucket_step_px=8")
    with pytest.raises(ConfigError, match=r"bucket_max_aspect=4 makes sides of up to .*'s limit"):
        check("sd3", "train.resolution=256", "train.bucket_max_aspect=4")
