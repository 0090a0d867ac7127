from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.fullsize_theme import write_model
from benchmarks.random_models import SD15, TINY, make_random_components
from dreambooth_ray.models.components import load_components
from tests import published_models


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in network.named_parameters()}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_sizes_are_as_published(part: str) -> None:
    published = published_models.build_full_width(published_models.SD15, part)
    ours = getattr(make_random_components(SD15, torch.device("meta")), part)
    assert shapes_of(ours) == shapes_of(published)


def test_a_written_model_is_read_back(tmp_path: Path) -> None:
    write_model(tmp_path, TINY)
    parts = load_components(tmp_path)
    assert parts.unet.config.sample_size == TINY.side_px // 8
    assert shapes_of(parts.unet) == shapes_of(
        make_random_components(TINY, torch.device("meta")).unet
    )
