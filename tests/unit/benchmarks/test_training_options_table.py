from typing import Any

import pytest

from benchmarks.training_options_table import TITLES, format_sections, summarize_section


def make_cell(subject: int, fidelities: list[float], pres: list[float]) -> dict[str, Any]:
    """Scored every 10 steps."""
    points = {
        str(10 * (k + 1)): {"judged": {**dict.fromkeys(TITLES, 0.5), "dino": f, "pres": p}}
        for k, (f, p) in enumerate(zip(fidelities, pres, strict=True))
    }
    return {"subject": subject, "points": points, "parameters": 1000 + subject}


def make_rows() -> dict[str, dict[int, dict[str, Any]]]:
    return {
        "no masks": {
            0: make_cell(0, [0.2, 0.4], [0.2, 0.3]),
            1: make_cell(1, [0.2, 0.6], [0.2, 0.3]),
            # A subject that not every row has is left out.
            2: make_cell(2, [0.9, 0.9], [0.9, 0.9]),
        },
        "background 0.1": {
            0: make_cell(0, [0.4, 0.8], [0.1, 0.5]),
            1: make_cell(1, [0.2, 0.4], [0.1, 0.1]),
        },
    }


def test_rows_are_compared_subject_by_subject_with_the_first() -> None:
    section = summarize_section(make_rows())
    assert section["subjects"] == [0, 1]
    assert section["rows"]["no masks"]["dino"]["mean"] == 0.5
    assert section["rows"]["background 0.1"]["parameters"] == 1000
    change = section["less_usual"]["background 0.1"]
    assert change["dino"] == {"mean": 0.1, "deviation": 0.4243, "better_in": 1}
    # Less of PRES is better: 0.5 is not, 0.1 is.
    assert change["pres"] == {"mean": 0.0, "deviation": 0.2828, "better_in": 1}


def test_at_equal_likeness_scores_are_read_between_two_points() -> None:
    change = summarize_section(make_rows())["equal_likeness"]["background 0.1"]
    # Subject 0: at 0.4, PRES 0.1 and 0.3; subject 1: at 0.4, 0.1 and half way from 0.2 to 0.3.
    assert change["dino"]["mean"] == pytest.approx(0.0)
    assert change["pres"]["mean"] == pytest.approx((-0.2 - 0.15) / 2)
    assert change["pres"]["better_in"] == 2


def test_the_page_has_every_row_its_differences_and_sizes() -> None:
    record = {
        "sections": {"masks": summarize_section(make_rows())},
        "setting": {"steps": 20, "photographs_a_step": 2, "class_images": 4},
    }
    record["sections"]["adapters"] = record["sections"]["masks"]
    text = "\n".join(format_sections(record))
    assert "| no masks | 0.500 ± 0.141 |" in text
    assert "| background 0.1, less the first row | +0.100 ± 0.424, 1 |" in text
    assert "| 1,000 |" in text
    assert "weights trained" in text
