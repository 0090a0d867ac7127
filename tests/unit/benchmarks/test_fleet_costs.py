import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster_cost_plan import Cluster, TrainingWorkload
from benchmarks.fleet_costs import BatchGain, estimate_fleet_costs, read_batch_gain
from dreambooth_ray.errors import ConfigError

HOUR = 3600.0
RESULTS = Path(__file__).parents[3] / "benchmarks/results"
GAIN = BatchGain({1: 1.0, 4: 2.0, 16: 3.0}, 0.5, 1.0, "a toy, a processor")
# Nothing fails and nothing takes time but steps and what belongs to each subject.
CLUSTER = Cluster(8, 1e18, 1e15, 2.0)


def make_workload(subjects: int, start_s: float = 1e-9) -> TrainingWorkload:
    return TrainingWorkload(subjects, 100, 0.5, start_s, 1.0, 0.95)


def test_measured_gains_are_taken_and_those_between_lie_between() -> None:
    assert [GAIN.interpolate_batch_speedup(count) for count in (1, 4, 16)] == [1.0, 2.0, 3.0]
    assert GAIN.interpolate_batch_speedup(2) == pytest.approx(math.sqrt(2.0))
    # Nobody knows what more would gain.
    assert GAIN.interpolate_batch_speedup(64) == 3.0
    assert GAIN.describe_evidence(4) == "measured: a toy, a processor"
    assert GAIN.describe_evidence(64).startswith("assumed: as with 16 subjects")
    assert "between those measured" in GAIN.describe_evidence(8)


@given(st.integers(1, 64), st.integers(1, 64))
def test_more_subjects_never_gain_less_where_the_measured_ones_do_not(few: int, many: int) -> None:
    few, many = sorted((few, many))
    assert GAIN.interpolate_batch_speedup(few) <= GAIN.interpolate_batch_speedup(many) + 1e-12


def test_time_and_cost_follow_from_steps_and_gain() -> None:
    plan = estimate_fleet_costs(make_workload(64), CLUSTER, 4, GAIN, None)
    one, eight, thousand = plan["options"]
    # 16 rounds of 100 steps of four at 0.5 s, twice as quick, and a second for each subject.
    assert one["wall_h"] == pytest.approx((16 * 100 * 1.0 + 64) / HOUR, abs=1e-3)
    assert one["cost_a_subject"] == pytest.approx(2.0 * (1600 + 64) / HOUR / 64, abs=1e-5)
    assert eight["cost_a_subject"] == pytest.approx(one["cost_a_subject"], rel=1e-3)
    assert eight["wall_h"] == pytest.approx(one["wall_h"] / 8, abs=1e-3)
    # As many GPUs as there are subjects gain nothing by batches, and no more than those are paid.
    assert (thousand["workers"], thousand["slots"]) == (64, 1)
    assert thousand["cost_a_subject"] == pytest.approx(2.0 * (100 * 0.5 + 1) / HOUR, abs=1e-5)


def test_a_worker_starts_once_for_all_its_subjects() -> None:
    plan = estimate_fleet_costs(make_workload(8_000, start_s=100.0), CLUSTER, 4, GAIN, 0.0)
    shares = {option["gpus"]: option["share_of_steps"] for option in plan["options"]}
    assert shares[1] > shares[8] > shares[1000]
    assert plan["assumptions"]["subject_s"] == "given"


def test_a_record_that_was_unsteady_is_told_so() -> None:
    words = [
        estimate_fleet_costs(make_workload(8), CLUSTER, 4, gain, None)["assumptions"]["subject_s"]
        for gain in (GAIN, replace(GAIN, unsteady="something ran beside it"))
    ]
    assert "unsteady" not in words[0]
    assert "(unsteady: something ran beside it)" in words[1]


def test_failures_cost_what_was_done_since_the_last_checkpoint() -> None:
    frail = Cluster(8, 1e9, 2 * HOUR, 2.0)
    workload = TrainingWorkload(100, 800, 0.5, 25.0, 4e9, 0.95)
    costs = [
        estimate_fleet_costs(workload, cluster, 4, GAIN, None)["options"][0]["cost_a_subject"]
        for cluster in (Cluster(8, 1e9, 1e6 * HOUR, 2.0), frail)
    ]
    assert costs[1] > 1.02 * costs[0]


def test_the_record_that_ships_is_read() -> None:
    gain = read_batch_gain(RESULTS)
    record = json.loads((RESULTS / "fleet.json").read_text())
    assert max(gain.by_count) == 32
    assert gain.interpolate_batch_speedup(32) == record["ratios"]["warm"]["median"]
    assert 1 / gain.step_s == pytest.approx(record["cases"][0]["theirs"]["median"])
    # Whole jobs take longer than their steps.
    assert 0 < gain.subject_s < 60
    assert record["conditions"]["device"] in gain.source


@pytest.mark.parametrize("text", [None, "[]", '{"cases": []}'])
def test_without_a_record_that_is_said(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "fleet.json").write_text(text)
    with pytest.raises(ConfigError, match=r"--slots: .*fleet\.json .* `dreambooth bench fleet"):
        read_batch_gain(tmp_path)


def test_a_fleet_that_would_never_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="--subject-s=inf"):
        estimate_fleet_costs(make_workload(4), CLUSTER, 4, GAIN, math.inf)
    with pytest.raises(ConfigError, match="--mtbf-h"):
        estimate_fleet_costs(
            make_workload(4, start_s=1e6), replace(CLUSTER, mtbf_s=1.0), 4, GAIN, None
        )
