"""Forwards that are compiled."""

import pytest
import torch
from diffusers import ModelMixin
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models.components import Components
from dreambooth_ray.training.recorded_forwards import StepForwards
from tests.unit.training.fitted import SMALL

WIDTHS = range(8, 8 + 9 * 8, 8)


class ManyWidths(ModelMixin):
    """More widths of one kind of block than torch compiles one code for by itself."""

    _repeated_blocks = ("BasicTransformerBlock",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BasicTransformerBlock(width, 1, width) for width in WIDTHS)

    def forward(self, noisy: Tensor) -> Tensor:
        outputs = [block(noisy[..., : block.norm1.normalized_shape[0]]) for block in self.blocks]
        return torch.stack([output.mean() for output in outputs])


def test_blocks_of_many_widths_are_compiled(
    toy_parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **kw: compile_module(self, backend="eager", **kw)
    )
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 8)
    torch.manual_seed(0)
    network, inputs = ManyWidths().eval(), torch.randn(1, 4, max(WIDTHS))
    plain = network(inputs)
    config = parse_config(
        "subject: {photos: p, class_noun: robot}", "x", [*SMALL, "train.compile=blocks"]
    )
    StepForwards(config, toy_parts.functions, network, {})
    torch.testing.assert_close(network(inputs), plain)
