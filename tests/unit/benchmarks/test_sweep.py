from typing import Any

import pytest

from benchmarks.sweep import (
    GRIDS,
    KEYS,
    SUBJECTS,
    compare_best_with_recipe,
    format_page,
    make_study_cells,
    make_sweep_rows,
    select_best_sweep_row,
)


def line(subject: int, cell: str, fidelity: float, pres: float) -> dict[str, Any]:
    scores = dict.fromkeys(KEYS, 0.5) | {"dino": fidelity, "pres": pres}
    return {"subject": subject, "cell": cell, "points": {"400": {"judged": scores}}}


def names(method: str) -> dict[tuple[str, str], str]:
    cell_names = [c.name for c in make_study_cells((0,)) if c.method == method]
    pairs = [(rate, weight) for rate in GRIDS[method][0] for weight in GRIDS[method][1]]
    return dict(zip(pairs, cell_names, strict=True))


def test_every_cell_is_asked_for_once() -> None:
    cell_keys = [(c.subject, c.name) for c in make_study_cells(SUBJECTS)]
    assert len(set(cell_keys)) == len(cell_keys) == 11 * len(SUBJECTS)


def test_the_best_row_is_the_most_like_and_agreeing_within_the_bound() -> None:
    full = names("full")
    low, high = full["5e-5", "1.0"], full["2e-4", "2.0"]
    lines = [line(0, low, 0.5, 0.2), line(1, low, 0.7, 0.3), line(2, low, 0.9, 0.3)]
    lines += [line(0, high, 0.9, 0.5), line(1, high, 0.9, 0.5)]
    rows = make_sweep_rows(lines)
    assert [(r["method"], r["lr"], r["prior_weight"], r["subjects"]) for r in rows] == [
        ("full", 5e-5, 1.0, [0, 1]),
        ("full", 2e-4, 2.0, [0, 1]),
    ]
    assert [r["dino"] for r in rows] == [0.6, 0.9]
    assert rows[0]["score"] == [0.25, 0.35]
    assert select_best_sweep_row(rows, 0.4) == rows[0]
    assert select_best_sweep_row(rows, 0.6) == rows[1]
    assert select_best_sweep_row(rows, 0.1) == rows[0]


@pytest.mark.parametrize("method", GRIDS)
def test_the_recipes_own_values_are_on_their_grid(method: str) -> None:
    lines = [line(0, name, 0.5 + k / 10, 0.2) for k, name in enumerate(names(method).values())]
    rows = make_sweep_rows(lines)
    comparison = compare_best_with_recipe(method, rows, 0.4)
    assert len(comparison["best_less_recipe"]) == 1
    assert comparison["recipe_is_best"] == (comparison["best_less_recipe"] == [0.0])
    text = format_page(rows, {method: comparison})
    assert text.count("(r)") == 2  # the legend, and the one row
    assert text.count("◀") == 2
