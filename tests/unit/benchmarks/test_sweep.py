from typing import Any

from benchmarks.sweep import KEYS, SUBJECTS, best_row, cells, table


def line(subject: int, cell: str, fidelity: float, pres: float) -> dict[str, Any]:
    scores = dict.fromkeys(KEYS, 0.5) | {"dino": fidelity, "pres": pres}
    return {"subject": subject, "cell": cell, "points": {"240": {"judged": scores}}}


def test_the_best_row_is_the_most_faithful_within_the_bound() -> None:
    asked = cells(SUBJECTS)
    low, high = asked[0].name, asked[-1].name
    lines = [line(0, low, 0.5, 0.2), line(1, low, 0.7, 0.3), line(2, low, 0.9, 0.3)]
    lines += [line(0, high, 0.9, 0.5), line(1, high, 0.9, 0.5)]
    rows = table(lines)
    assert [(r["lr"], r["prior_weight"], r["subjects"]) for r in rows] == [
        (5e-5, 1.0, [0, 1]),
        (2e-4, 2.0, [0, 1]),
    ]
    assert [r["dino"] for r in rows] == [0.6, 0.9]
    assert best_row(rows, 0.4) == rows[0]
    assert best_row(rows, 0.6) == rows[1]
