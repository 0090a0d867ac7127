from typing import Any

import pytest

from benchmarks.preservation_study import KINDS, make_cells, parse_training_method_and_kind
from benchmarks.preservation_table import TITLES, format_page, summarize_by_method_and_kind


def make_line(cell: str, subject: int, fidelities: list[float], pres: float) -> dict[str, Any]:
    """A cell scored every 10 steps, of a second each."""
    points = {
        str(10 * (k + 1)): {
            "judged": {**dict.fromkeys(TITLES, 0.5), "dino": fidelity, "pres": pres},
            "seconds": {"trained": 10.0 * (k + 1)},
        }
        for k, fidelity in enumerate(fidelities)
    }
    return {"subject": subject, "cell": cell, "points": points}


def test_a_cells_line_names_its_method_and_kind() -> None:
    cells = make_cells(range(1), ("lora", "full"))
    pairs = [parse_training_method_and_kind({"cell": cell.name}) for cell in cells]
    assert pairs == [(method, kind) for method in ("lora", "full") for kind in KINDS]


def test_cells_of_the_toy_that_flows_have_its_setting_and_a_kind() -> None:
    cells = make_cells(range(1), ("lora",), ("none", "both"), "toyworld-flow")
    assert [parse_training_method_and_kind({"cell": cell.name})[1] for cell in cells] == [
        "none",
        "both",
    ]
    assert {cell.model for cell in cells} == {"toyworld-flow"}
    assert "train.steps=300" in cells[0].name


def test_kinds_are_compared_where_they_are_as_faithful_and_where_they_took_as_long() -> None:
    lines = [
        ("lora", "images", make_line("x", 0, [0.2, 0.4, 0.6], 0.3)),
        ("lora", "output", make_line("x", 0, [0.4, 0.8, 0.8], 0.1)),
        # A subject that not every kind has is left out.
        ("lora", "images", make_line("x", 1, [0.9, 0.9, 0.9], 0.9)),
    ]
    results = summarize_by_method_and_kind(lines, class_images_s={"lora": 5.0})
    result = results["methods"]["lora"]
    assert result["subjects"] == [0]
    likeness = result["equal_likeness"]["output"]
    # 0.6 is what class images reach at their end, and the output half way from 10 to 20 steps.
    assert likeness["dino"]["kind"]["mean"] == likeness["dino"]["images"]["mean"] == 0.6
    assert likeness["steps"]["kind"]["mean"] == pytest.approx(15.0)
    assert likeness["steps"]["images"]["mean"] == 30.0
    assert likeness["with_images_s"]["images"]["mean"] == 35.0
    assert likeness["pres"]["better_in"] == 1
    seconds = result["equal_seconds"]["output"]
    # 30 seconds are 25 of training where class images took 5.
    assert seconds["steps"]["kind"]["mean"] == 30.0
    assert seconds["dino"]["images"]["mean"] == pytest.approx(0.5)
    setting = {
        "steps": 30,
        "photographs_a_step": 2,
        "class_images": 4,
        "class_images_s": {"lora": 5.0},
    }
    assert "## lora, 1 subject\n" in format_page(results, setting)
