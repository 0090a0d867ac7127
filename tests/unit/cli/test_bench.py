import json
from pathlib import Path

import pytest

from dreambooth_ray.cli import bench
from dreambooth_ray.errors import ConfigError


def test_seconds_of_a_subject_are_of_a_fleet() -> None:
    with pytest.raises(ConfigError, match=r"--subject-s=2 is of a fleet; give its --slots"):
        bench.plan(gpus=1, subjects=1, subject_s=2.0)


def test_a_plan_has_a_fleet_where_slots_are_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RESULTS", Path(__file__).parents[3] / "benchmarks/results")
    bench.plan(gpus=4, subjects=100, slots=8)
    printed = capsys.readouterr()
    assert [option["gpus"] for option in json.loads(printed.out)["fleet"]["options"]] == [
        1, 4, 8, 1000,
    ]  # fmt: skip
    # The step is of what the gain is of.
    assert "measured: one subject's LoRA" in printed.err
    bench.plan(gpus=4, subjects=100, step_s=0.5)
    assert "fleet" not in json.loads(capsys.readouterr().out)
