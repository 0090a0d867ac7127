from benchmarks.measure import BenchmarkCase, WallAndCpuTime, compare_sides
from benchmarks.priors_theme import compute_lost_speedup, explain_missed_bar


def test_what_two_actors_lose_is_parted_by_what_takes_it() -> None:
    # Alone 10 images in 10 s, all of it computing; both 20 in 12.5 s, of which each computes 12.
    case = compare_sides(
        BenchmarkCase("2 actors against one", "one_worker", 10, "images", 1.9, 20),
        lambda: WallAndCpuTime(12.5, 24.0),
        lambda: WallAndCpuTime(10.0, 10.0),
        3,
    )
    assert compute_lost_speedup(case, 2) == {
        "to the machine": 0.167,
        "to waiting, of what is left": 0.04,
    }
    (why,) = explain_missed_bar(case, 2)
    assert why.startswith("2 actors against one: 1.60 of 1.9")
    assert "1.200 times the processor time" in why and "come to 1.67" in why and "4.0%" in why


def test_nothing_is_explained_where_the_bar_is_reached_or_nothing_was_measured() -> None:
    case = compare_sides(
        BenchmarkCase("2 actors against one", "one_worker", 10, "images", 1.9, 20),
        lambda: WallAndCpuTime(10.2, 20.1),
        lambda: WallAndCpuTime(10.0, 10.0),
        3,
    )
    assert explain_missed_bar(case, 2) == []
    assert compute_lost_speedup({"case": "2 actors against one", "out_of_memory": "ours"}, 2) == {}
    assert explain_missed_bar({"case": "2 actors against one", "out_of_memory": "ours"}, 2) == []
