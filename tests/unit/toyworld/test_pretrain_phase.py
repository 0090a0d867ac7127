"""A phase that is stopped and started again ends with the same weights."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dreambooth_ray.toyworld.pretrain_phase import (
    Phase,
    WarmupMovingAverage,
    read_averaged_weights,
    train_phase_in_processes,
)


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        noisy: Tensor = self.line(x) + 0.01 * torch.randn_like(x)
        return noisy.square().mean()


def make(work: Path, stop_at: int | None = None) -> Phase:
    torch.manual_seed(1)

    def batch(step: int, rank: int) -> tuple[Tensor]:
        if step == stop_at:
            raise RuntimeError("stopped here")
        return (torch.randn(8, 4, generator=torch.Generator().manual_seed(step * 2 + rank)),)

    return Phase("square", Square(), batch, steps=300, lr=0.01)


@pytest.mark.fault
def test_a_resumed_phase_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, interrupted = tmp_path / "whole", tmp_path / "parts"
    uninterrupted.mkdir()
    interrupted.mkdir()
    train_phase_in_processes(make, uninterrupted, processes=1)
    with pytest.raises(Exception, match="stopped here"):
        train_phase_in_processes(partial(make, stop_at=270), interrupted, processes=1)
    assert torch.load(interrupted / "square.pt", weights_only=True)["step"] == 250
    train_phase_in_processes(make, interrupted, processes=1)
    one = read_averaged_weights(uninterrupted / "square.pt")
    two = read_averaged_weights(interrupted / "square.pt")
    assert one.keys() == {"line.weight", "line.bias"}
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_an_average_forgets_where_it_began() -> None:
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    average = WarmupMovingAverage(0.999)
    for step in range(1, 2000):
        average(averaged, current, step)
    assert torch.allclose(averaged[0], current[0], atol=1e-3)
