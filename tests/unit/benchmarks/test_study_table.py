from typing import Any

from benchmarks.study_table import SCORE_TITLES, format_page, summarize_cells


def cell(subject: int, name: str, chosen: list[float], judged: list[float]) -> dict[str, Any]:
    """Points at steps 10, 20, ... of these fidelities, PRES 0.3 throughout; 0.6 without images."""

    def scores(value: float) -> dict[str, float]:
        return dict.fromkeys(SCORE_TITLES, 0.5) | {
            "dino": value,
            "pres": 0.6 if "without" in name else 0.3,
        }

    points = {
        str(10 * (k + 1)): {"chosen": scores(c), "judged": scores(j)}
        for k, (c, j) in enumerate(zip(chosen, judged, strict=True))
    }
    return {"subject": subject, "cell": name, "points": points}


def lines(subject: int) -> list[dict[str, Any]]:
    return [
        cell(subject, "before training", [0.1], [0.1]),
        *(
            cell(subject, f"{method}, {prior} class images", [0.2, 0.9, 0.4], [0.3, 0.6, judged])
            for method in ("full", "lora")
            for prior, judged in (("with", 0.5 + subject / 10), ("without", 0.8))
        ),
    ]


def test_the_table_is_of_the_last_step_and_of_complete_subjects() -> None:
    results = summarize_cells([*lines(0), *lines(1), *lines(2)[:3]])
    assert results["subjects"] == [0, 1]
    row = results["table"]["full, with class images"]["dino"]
    assert row == {"mean": 0.55, "deviation": 0.0707}
    assert results["table"]["before training"]["pres"]["mean"] == 0.3
    change = results["with_less_without"]["lora"]["dino"]
    assert change == {"mean": -0.25, "deviation": 0.0707, "lower_in": 2}


def test_a_choice_is_held_against_the_best_by_other_images() -> None:
    choice = summarize_cells([*lines(0), *lines(2)])["choice"]
    assert choice["runs"] == 4
    # Of subject 0 step 20 is the best there is; of subject 2 step 30 would have been.
    rows = [row for row in choice["each"] if "without" not in row["cell"]]
    assert [row["chosen"] for row in rows] == [20] * 4
    assert [row["shortfall"] for row in rows] == [0.0, 0.0, 0.1429, 0.1429]
    assert (
        choice["same_checkpoint"] == choice["within_2_percent"] == choice["best_is_the_last"] == 2
    )
    assert choice["worst"] == 0.1429
    assert choice["runs_beyond_the_bound"] == 4


def test_the_page_has_a_line_for_every_kind_of_cell() -> None:
    text = format_page(summarize_cells([*lines(0), *lines(1)]), "30 steps")
    assert "2 random toy subjects; after 30 steps;" in text
    assert "| before training | 0.100 ± 0.000 |" in text
    assert "of 4 runs with a checkpoint within the bound" in text
