from benchmarks.scaling_theme import compute_lost_speedup, explain_missed_bars


def test_what_is_lost_is_parted_by_what_takes_it() -> None:
    assert compute_lost_speedup({"weak": 1.5}, 2) == {}
    assert compute_lost_speedup({"weak": 1.53, "ceiling": 1.7}, 2) == {
        "to the machine": 0.15,
        "to the exchange, of what is left": 0.1,
    }


def test_only_cases_below_their_bar_are_explained() -> None:
    cases = [
        {"case": "weak", "bar": 1.85, "ratio": {"median": 1.5}, "reached": False},
        {"case": "lora", "bar": 1.85, "ratio": {"median": 1.9}, "reached": True},
        {"case": "ceiling", "bar": None, "ratio": {"median": 1.7}},
    ]
    (why,) = explain_missed_bars(cases, {"weak": 1.5, "ceiling": 1.7})
    assert why.startswith("weak: 1.50 of 1.85") and "1.70" in why and "12% of it" in why
    assert explain_missed_bars(cases, {"weak": 1.5}) == []
