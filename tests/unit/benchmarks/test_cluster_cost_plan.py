import json
import math
from pathlib import Path

import pytest

from benchmarks.cluster_cost_plan import (
    Cluster,
    TrainingWorkload,
    best_interval_s,
    expected_job_s,
    plan_gpus_per_subject,
    read_measured_step_s,
    simulate_job_s,
    simulate_mean_job_s,
)
from dreambooth_ray.errors import ConfigError

HOUR = 3600.0


def test_interval_is_near_youngs_where_failures_are_rare() -> None:
    interval_s = best_interval_s(10.0, 1000 * HOUR)
    assert interval_s == pytest.approx(math.sqrt(2 * 10 * 1000 * HOUR), rel=0.01)


def test_no_other_interval_is_expected_to_end_sooner() -> None:
    best = best_interval_s(60.0, 2 * HOUR)
    at = [expected_job_s(10 * HOUR, best * k, 60.0, 100.0, 2 * HOUR) for k in (0.7, 1.0, 1.4)]
    assert at[1] == min(at)


@pytest.mark.parametrize("mtbf_s", [0.5 * HOUR, 2 * HOUR, 50 * HOUR])
def test_simulation_agrees_with_the_closed_form(mtbf_s: float) -> None:
    job = (2 * HOUR, best_interval_s(20.0, mtbf_s), 20.0, 30.0, mtbf_s)
    assert simulate_mean_job_s(*job, seed=1) == pytest.approx(expected_job_s(*job), rel=0.06)


def test_a_failure_costs_a_start_and_what_was_done_since_the_checkpoint() -> None:
    job = (100.0, 20.0, 1.0, 30.0)
    assert simulate_job_s(*job, iter(()), 0.0) == pytest.approx(105)
    # Ten seconds into the third piece, then while it starts anew.
    assert simulate_job_s(*job, iter((52.0,)), 0.0) == pytest.approx(105 + 10 + 30)
    assert simulate_job_s(*job, iter((52.0, 7.0)), 0.0) == pytest.approx(105 + 10 + 7 + 30)


def test_many_subjects_get_a_gpu_each_and_few_get_several() -> None:
    work = TrainingWorkload(1_000_000, 800, 0.5, 25.0, 4e9, 0.95)
    cluster = Cluster(1000, 1e9, 5000 * HOUR, 2.0)
    plan = plan_gpus_per_subject(work, cluster, 0)
    assert plan["best"]["gpus_a_subject"] == 1
    assert plan["best"]["cost"] == pytest.approx(2 * plan["best"]["gpu_h"], rel=1e-3)
    few = plan_gpus_per_subject(TrainingWorkload(100, 8000, 0.5, 25.0, 4e9, 0.95), cluster, 0)
    assert few["best"]["gpus_a_subject"] == 8


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="efficiency"):
        TrainingWorkload(1, 1, 1.0, 1.0, 1.0, 0.0)
    with pytest.raises(ConfigError, match="mtbf_s"):
        Cluster(1, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0])
def test_what_is_no_length_is_refused(number: float) -> None:
    with pytest.raises(ConfigError, match="step_s"):
        TrainingWorkload(1, 1, number, 1.0, 1.0, 0.5)
    with pytest.raises(ConfigError, match="price_h"):
        Cluster(1, 1.0, 1.0, number)


@pytest.mark.parametrize("mtbf_s", [1e-6, 60.0])
def test_work_that_failures_never_let_end_is_refused(mtbf_s: float) -> None:
    work = TrainingWorkload(1, 800, 0.5, 3600.0, 4e9, 0.95)
    with pytest.raises(ConfigError, match="--mtbf-h"):
        plan_gpus_per_subject(work, Cluster(4, 1e9, mtbf_s, 2.0), 0)


def test_a_plan_is_made_where_more_gpus_would_fail_too_often() -> None:
    work = TrainingWorkload(1, 8000, 0.5, 600.0, 4e9, 0.95)
    plan = plan_gpus_per_subject(work, Cluster(16, 1e9, 600.0, 2.0), 0)
    assert [option["gpus_a_subject"] for option in plan["options"]] == [1, 2, 4]


def test_numbers_of_gpus_that_would_never_end_are_left_out() -> None:
    plan = plan_gpus_per_subject(
        TrainingWorkload(1, 800, 0.5, 25.0, 4e9, 1e-9), Cluster(4, 1e9, 5000 * HOUR, 2.0), 0
    )
    assert [option["gpus_a_subject"] for option in plan["options"]] == [1]


def test_a_step_is_as_long_as_it_was_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no --step-s.*bench train"):
        read_measured_step_s(tmp_path)
    record = {
        "cases": [{"case": "full", "ours": {"median": 20.0}}],
        "configuration": {"run": {"train": {"batch_size": 4}}},
        "setting": {"model": "toyworld"},
        "conditions": {"device": "a processor"},
    }
    (tmp_path / "train.json").write_text(json.dumps(record))
    assert read_measured_step_s(tmp_path) == (0.4, "full, toyworld, a processor")
