from pathlib import Path

import pytest

from benchmarks.gated_runs import make_config
from benchmarks.plain_loop_breakdown import explain_missed_bar, measure_breakdown
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.models.model_directory import model_directory


def test_parts_make_the_whole(tmp_path: Path) -> None:
    config = make_config(tmp_path, BenchmarkSettings(), "lora", 1)
    breakdown = measure_breakdown(config, str(model_directory("toyworld")), 1)
    assert sum(breakdown["shares"].values()) == pytest.approx(1, abs=0.01)
    assert all(share >= 0 for share in breakdown["shares"].values())
    assert breakdown["bound"] > 1


def test_reason_says_whether_the_bar_can_be_reached() -> None:
    case = {"case": "lora", "bar": 1.8, "ratio": {"median": 1.2}}
    assert "less than the bar asks" in explain_missed_bar(case, {"bound": 1.4})
    assert "what lies between" in explain_missed_bar(case, {"bound": 1.9})
    assert "Ours is beyond that" in explain_missed_bar(case, {"bound": 1.1})
