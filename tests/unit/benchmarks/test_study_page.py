import shutil
from pathlib import Path

from benchmarks.study_page import PAGE, write_study_page

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def test_the_page_that_ships_is_made_of_the_records_beside_it(tmp_path: Path) -> None:
    for record in RESULTS.glob("*.json"):
        shutil.copy(record, tmp_path)
    write_study_page(tmp_path)
    assert (tmp_path / PAGE).read_text() == (RESULTS / PAGE).read_text()


def test_without_further_records_the_page_is_of_the_study_alone(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "study.json", tmp_path)
    write_study_page(tmp_path)
    text = (tmp_path / PAGE).read_text()
    assert text.startswith("# Prior preservation, measured")
    assert "Masks" not in text
    assert "two toys" not in text
