import pytest

from benchmarks.conditions import read_conditions
from benchmarks.theme import (
    BenchmarkSettings,
    parse_worker_counts,
    run_benchmark_theme,
    select_headline_ratios,
)
from dreambooth_ray.errors import ConfigError


def test_workers_are_counts() -> None:
    assert parse_worker_counts("2,1,2") == (1, 2)


@pytest.mark.parametrize("text", ["", "a", "0,1", "1;2"])
def test_other_workers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--workers"):
        parse_worker_counts(text)


def test_unknown_theme_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="sample"):
        run_benchmark_theme("samples", BenchmarkSettings())


def test_each_peer_shows_its_headline_case() -> None:
    cases = [
        {"case": "a", "peer": "diffusers", "ratio": {"median": 1.0}},
        {"case": "b", "peer": "diffusers", "ratio": {"median": 2.0}},
        {"case": "c", "peer": "one_worker", "ratio": {"median": 3.0}},
        {"case": "d", "peer": "fastapi", "out_of_memory": "theirs"},
    ]
    ratios = select_headline_ratios(cases, {"diffusers": "b"})
    assert ratios == {"diffusers": {"median": 2.0}, "one_worker": {"median": 3.0}}


def test_conditions_keep_no_path_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/libjemalloc.so")
    assert read_conditions()["environment"]["LD_PRELOAD"] == "libjemalloc.so"


def test_conditions_name_versions_threads_and_load() -> None:
    conditions = read_conditions()
    assert conditions["versions"]["torch"]
    assert conditions["threads"] >= 1
    assert len(conditions["load_average"]) == 3
    assert conditions["device"]
