"""The study's page, of all records that lie in one folder."""

import json
from pathlib import Path
from typing import Any

from benchmarks.preservation_table import format_equal_likeness, format_last_scores
from benchmarks.study_table import format_page
from benchmarks.training_options_table import format_sections
from dreambooth_ray.config.count_text import describe_count

PAGE = "study.md"
_TOYS = {
    "preservation.json": "the first toy, a UNet that predicts noise",
    "preservation_flow.json": "`toyworld-flow`, a transformer that predicts velocity",
}
_METHODS = {"lora": "adapters", "full": "all weights"}


def write_study_page(folder: Path) -> None:
    """Write study.md of study.json and of the records beside it that are there."""
    study_record = json.loads((folder / "study.json").read_text())
    study_setting = study_record["setting"]
    training_text = (
        f"{study_setting['steps']} steps of {study_setting['photographs_a_step']} photographs, "
        "class images at the paper's weight 1"
    )
    page_lines = [format_page(study_record, training_text)]
    records_by_toy = {
        title: json.loads((folder / name).read_text())
        for name, title in _TOYS.items()
        if (folder / name).exists()
    }
    if records_by_toy:
        page_lines += _format_preservation_on_toys(records_by_toy)
    if (folder / "options.json").exists():
        page_lines += format_sections(json.loads((folder / "options.json").read_text()))
    (folder / PAGE).write_text("\n".join(page_lines).rstrip() + "\n")


def _format_preservation_on_toys(records: dict[str, dict[str, Any]]) -> list[str]:
    """Kinds of preservation by each method, on each toy, over the subjects that it has."""
    page_lines = ["## Kinds of preservation on two toys", ""]
    method_results = [
        (title, method, result, record["setting"])
        for title, record in records.items()
        for method, result in record["methods"].items()
    ]
    for title, method, method_result, study_setting in method_results:
        page_lines += [
            f"On {title}: {_METHODS[method]}, "
            f"{describe_count(len(method_result['subjects']), 'subject')}, "
            f"{study_setting['steps']} steps; after the last one, and at equal likeness (the kind "
            "/ class images, and in how many subjects the kind is better):",
            "",
            *format_last_scores(method_result),
            "",
            *format_equal_likeness(method_result),
            "",
        ]
    return page_lines
