import pytest
import torch

from dreambooth_ray.compat.torch_peak_memory import PeakTracker, list_weight_tensors
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.memory.sampling_memory import (
    SamplingFootprint,
    SamplingMemoryBudget,
    measure_sampling_footprint,
)
from dreambooth_ray.models.components import Components

CPU = torch.device("cpu")


def test_the_estimate_is_near_a_real_forward(
    toy_parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not what an engine of another test has measured, with hooks or adapters in its UNet.
    monkeypatch.setattr("dreambooth_ray.memory.sampling_memory._footprint_cache", {})
    footprint = measure_sampling_footprint(toy_parts)
    inputs = torch.randn(4, 8, 24, 24), torch.zeros(4), torch.randn(4, 32, 128)
    with torch.no_grad(), PeakTracker(list_weight_tensors([toy_parts.unet])) as peak:
        toy_parts.unet(*inputs)
    assert footprint.row_bytes * 4 * 24 * 24 == pytest.approx(peak.peak_bytes, rel=0.1)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    budget = SamplingMemoryBudget(
        SamplingFootprint(1000, 10.0, 20.0), 200_000, CPU, tiled_area=128 * 128
    )
    assert budget.max_rows(64 * 64) == 4
    budget.check_request_fits(512, 512, 8, rows=2)
    with pytest.raises(CapacityError, match=r"width_px=1024.*up to 768x768 would fit"):
        budget.check_request_fits(1024, 1024, 8, rows=2)


def test_as_many_images_are_decoded_at_once_as_fit() -> None:
    budget = SamplingMemoryBudget(
        SamplingFootprint(1000, 1.0, 20.0), 200_000, CPU, tiled_area=64 * 64
    )
    assert budget.max_rows(64 * 64) == 48
    assert budget.max_decoded_images(64 * 64) == 2
    assert budget.max_decoded_images(16 * 16) == 38
    assert budget.max_decoded_images(640 * 640) == 2  # tiled: no more than at the tile's size
    tight = SamplingMemoryBudget(SamplingFootprint(1000, 1.0, 20.0), 2_000, CPU, tiled_area=64 * 64)
    assert tight.max_decoded_images(64 * 64) == 1


def test_no_room_at_all_is_said() -> None:
    budget = SamplingMemoryBudget(SamplingFootprint(1000, 10.0, 20.0), 1100, CPU, tiled_area=1)
    with pytest.raises(CapacityError, match="no image would fit"):
        budget.check_request_fits(512, 512, 8, rows=2)
