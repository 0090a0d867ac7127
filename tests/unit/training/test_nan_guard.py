"""Steps whose gradient is no number."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import nan_guard
from dreambooth_ray.training.checkpoint.convert import load_trained_weights
from dreambooth_ray.training.checkpoint.download import download_newest_checkpoint
from dreambooth_ray.training.metrics_log import SKIPPED, read_metrics
from tests.unit.training.fitted import Fitted


def test_a_step_without_a_gradient_that_is_a_number_is_skipped_and_counted(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, broken_steps: set[int]
) -> None:
    broken_steps |= {2, 5}
    run = Store(str(tmp_path / "run"))
    fitted = Fitted(
        tiny_model, photos, priors, "train.steps=5", "checkpoint.every=2", track=run, keep=True
    )
    assert all(bool(w.isfinite().all()) for w in fitted.weights.values())
    records = read_metrics(run)
    assert [r.get(SKIPPED) for r in records] == [None, 1, 1, 1, 2]
    assert [math.isfinite(r["grad_norm"]) for r in records] == [True, False, True, True, False]
    # The checkpoint of a skipped step is a good one.
    checkpoint = download_newest_checkpoint(run, tmp_path / "restored")
    assert checkpoint is not None
    assert checkpoint.step == 5
    parts = load_trained_weights(checkpoint.state)
    assert all(bool(w.isfinite().all()) for part in parts.values() for w in part.values())


def test_too_many_in_a_row_end_the_run_with_their_cause(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, broken_steps: set[int]
) -> None:
    broken_steps |= {3, 4, 5, 6, 7, 8}
    run = Store(str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"steps 3 to 5: .* Step 3 saw photograph .*train\.lr"):
        Fitted(
            tiny_model, photos, priors, "train.steps=9", "checkpoint.every=4", track=run, keep=True
        )
    # What was written before is whole, and a resume finds finite weights.
    checkpoint = download_newest_checkpoint(run, tmp_path / "restored")
    assert checkpoint is not None
    assert checkpoint.step == 4
    parts = load_trained_weights(checkpoint.state)
    assert all(bool(w.isfinite().all()) for part in parts.values() for w in part.values())


def test_a_gradient_scaler_may_take_longer_to_find_its_scale() -> None:
    for precision, maximum in (("32", 3), ("bf16-mixed", 3), ("16-mixed", 20)):
        guard = nan_guard.NanGuard(_NoDataset(), precision)  # type: ignore[arg-type]
        for step in range(1, maximum + 1):
            guard.check()
            metrics = {"step": step, "loss": 1.0, "instance_loss": 1.0, "prior_loss": 0.0}
            guard.count_skipped_step({**metrics, "grad_norm": float("inf")})
        with pytest.raises(DataError):
            guard.check()


class _NoDataset:
    def describe_inputs(self, step: int) -> list[str]:
        return [f"step {step}"]


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_the_kernel_skips_as_the_host_does(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a fused optimizer is told by a value on the device; here on a CPU."""
    states = []
    for is_told_on_device in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        for broken in (False, True, False):
            layer(torch.ones(1, 3)).sum().backward()
            norm = torch.tensor(float(value) if broken else 1.0)
            if broken:
                layer.weight.grad *= norm  # type: ignore[operator]
            monkeypatch.setattr(nan_guard, "FREE_TO_READ", set() if is_told_on_device else {"cpu"})
            nan_guard.skip_unless_finite(optimizer, norm)
            assert hasattr(optimizer, "found_inf") == is_told_on_device
            optimizer.step()
            optimizer.zero_grad()
        steps = [float(state["step"]) for state in optimizer.state.values()]
        assert steps == [2.0, 2.0]
        states.append([p.detach().clone() for p in layer.parameters()])
    assert all(map(torch.equal, *states))
    assert all(bool(w.isfinite().all()) for w in states[0])
