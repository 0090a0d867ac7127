import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks.bench_report import (
    BEGIN,
    END,
    format_table,
    plot_ratios,
    put_table,
    read_benchmark_records,
)
from dreambooth_ray.errors import ConfigError

RECORD: dict[str, Any] = {
    "theme": "sample",
    "setting": {"profile": "smoke"},
    "conditions": {"cores": 2, "load_average": [0.1, 0, 0]},
    "load_average_after": [1.5, 0, 0],
    "cases": [
        {
            "case": "mixed", "peer": "diffusers", "bar": 1.6, "reached": False,
            "ratio": {"median": 1.5, "p5": 1.4, "p95": 1.7}, "unsteady": "wide",
        },
        {"case": "large", "peer": "diffusers", "out_of_memory": "theirs"},
        {
            "case": "start", "peer": "", "bar_s": 25.0, "reached": True,
            "seconds": {"median": 14.0, "p5": 13.0, "p95": 15.0},
        },
    ],
}  # fmt: skip


def test_table_shows_ratio_spread_bar_and_conditions() -> None:
    _, _, mixed, large, start = format_table([RECORD]).splitlines()
    assert "1.50 (1.40 to 1.70), unsteady" in mixed
    assert "1.60, not reached" in mixed
    assert "load 1.5" in mixed
    assert "out of memory: theirs" in large
    assert "14.00 s (13.00 to 15.00) | 25 s |" in start


def test_table_takes_its_place_again(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("one", "two"):
        put_table(readme, text)
    assert readme.read_text() == f"before\n{BEGIN}\ntwo\n{END}\nafter\n"


def test_file_without_marks_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ConfigError, match="bench"):
        put_table(readme, "one")


def test_folder_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "savers.json").write_text("{}")
    with pytest.raises(ConfigError, match="no record"):
        read_benchmark_records(tmp_path)


def test_shipped_records_make_a_table_and_a_plot(tmp_path: Path) -> None:
    records = read_benchmark_records(Path(benchmarks.__file__).with_name("results"))
    assert len(format_table(records).splitlines()) > len(records) > 5
    plot_ratios(records, tmp_path / "ratios.svg")


def test_plot_is_of_the_records(tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text(json.dumps(RECORD))
    plot_ratios(read_benchmark_records(tmp_path), tmp_path / "ratios.svg")
    assert "<svg" in (tmp_path / "ratios.svg").read_text()
