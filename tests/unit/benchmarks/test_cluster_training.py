from benchmarks.cluster_training import add_efficiency, format_table


def test_efficiency_is_of_one_worker_alone() -> None:
    quantiles = {"median": 8.0, "p5": 7.0, "p95": 9.0}
    cases = [
        {"workers": n, "images_per_s": quantiles, "images_per_s_worker": rate, "step_s": quantiles}
        for n, rate in ((1, 8.0), (2, 6.0))
    ]
    add_efficiency(cases)
    assert [case["efficiency"] for case in cases] == [1.0, 0.75]
    table = format_table({"cases": cases, "configuration": {"device": "GPU"}})
    assert "images/s a GPU" in table
    assert "| 2 | 8.00 (7.00 to 9.00) | 6.00 | 75% | 8.000 |" in table
