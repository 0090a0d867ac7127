"""Both sides of the families' benchmark do their work, on any family."""

from pathlib import Path

import pytest

from benchmarks import family_speed
from tests.families.tiny_models import build_tiny


@pytest.mark.fault
@pytest.mark.parametrize("name", ["sd15", "sdxl", "z-image", "flux2-klein"])
def test_each_side_is_timed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("TRAINING_STEPS", "SAMPLING_STEPS", "NUM_IMAGES"):
        monkeypatch.setattr(family_speed, constant, 2)
    cases = family_speed.measure_family(build_tiny(name, tmp_path / name), pairs=1)
    assert [case["unit"] for case in cases] == ["steps/s", "images/s"]
    assert all(case["ratio"]["median"] > 0 for case in cases)
