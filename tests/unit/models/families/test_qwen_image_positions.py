from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

from dreambooth_ray.models.families.qwen_image_positions import RotaryPositions

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(4, 4), (3, 8), (9, 2), (1, 1), (64, 40)])
@pytest.mark.parametrize("in_list", [False, True])
def test_numbers_are_those_of_diffusers_tables(size: tuple[int, int], in_list: bool) -> None:
    tables = QwenEmbedRope(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    shape: Any = (1, *size)
    shapes = [[shape] if in_list else shape] * 2
    expected = tables(shapes, max_txt_seq_len=70, device=CPU)
    found = RotaryPositions(tables)(shapes, max_txt_seq_len=70, device=CPU)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_forward_leaves_nothing_behind_for_the_next() -> None:
    """Of a device without contents, say."""
    positions = RotaryPositions(QwenEmbedRope(theta=10000, axes_dim=[4, 6, 6], scale_rope=True))
    before = positions([(1, 2, 2)], CPU, 3)
    assert positions([(1, 2, 2)], torch.device("meta"), 3)[0].is_meta
    after = positions([(1, 2, 2)], CPU, 3)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
