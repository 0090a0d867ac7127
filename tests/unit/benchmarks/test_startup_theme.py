from benchmarks.startup_theme import summarize_case_seconds


def test_a_case_of_seconds_says_whether_it_is_quick_enough_and_steady() -> None:
    quick = summarize_case_seconds("submit", [20.0, 22.0, 21.0], 25.0)
    assert quick["seconds"]["median"] == 21.0
    assert quick["reached"] is True
    assert "unsteady" not in quick
    slow = summarize_case_seconds("submit", [20.0, 40.0, 60.0], 25.0)
    assert slow["reached"] is False
    assert "unsteady" in slow
    assert "reached" not in summarize_case_seconds("an image", [1.0])
