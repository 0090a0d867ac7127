"""The tables of docs/how-to/gpu.md against the estimate of today."""

from pathlib import Path

import pytest

from benchmarks.memory_table import (
    CARDS_GB,
    MARKS,
    METHODS,
    MODELS,
    RESULTS,
    describe_card_fit,
    make_measured_rows,
)
from tests.published_models import CONFIGS

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "gpu.md"
CELLS = [(model, words, card) for model in MODELS for words in METHODS for card in CARDS_GB]
# A count at full size takes seconds: these cells take one.
QUICK = {("SD 1.5", "LoRA", 8)}


def read_cell(name: str, words: str, card_gb: int) -> str:
    table = PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    (row,) = (row for row in rows if row[0].startswith(name) and row[0].endswith(f"px, {words}"))
    return row[1 + CARDS_GB.index(card_gb)].strip()


@pytest.mark.parametrize(
    ("model", "words", "card_gb"),
    [
        pytest.param(
            *cell, id=f"{cell[0].name}-{cell[1]}-{cell[2]}",
            marks=() if (cell[0].name, *cell[1:]) in QUICK else (pytest.mark.fault,),
        )
        for cell in CELLS
    ],
)  # fmt: skip
def test_the_page_says_what_the_estimate_says(model: object, words: str, card_gb: int) -> None:
    (published,) = (known for known in MODELS if known is model)
    cell = describe_card_fit(CONFIGS, published, METHODS[words], card_gb)
    assert read_cell(published.name, words, card_gb) == cell


@pytest.mark.fault
def test_measured_peaks_are_beside_what_was_predicted() -> None:
    rows = make_measured_rows(CONFIGS, RESULTS)
    assert all(row in PAGE.read_text() for row in rows)
    for row in rows:
        predicted, measured = (float(cell) for cell in row.strip("| ").split(" | ")[1:])
        assert predicted == pytest.approx(measured, rel=0.15)
