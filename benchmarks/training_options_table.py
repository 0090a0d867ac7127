"""What the cells of the options' study say together: spreads, and pairs with the usual way."""

from typing import Any

from benchmarks.study_table import (
    Curve,
    compute_mean_and_deviation,
    format_mean_and_deviation,
    interpolate_scores_at_value,
)
from dreambooth_ray.config.count_text import describe_count

# Key of a score, its column, and whether more is better.
TITLES = {
    "dino": ("subject fidelity", True),
    "prompt_fidelity": ("prompt fidelity", True),
    "pres": ("PRES", False),
    "div": ("DIV", True),
    "class_div": ("DIV of the bare class", True),
    "drift": ("other classes lost", False),
    "places": ("named places drawn", True),
    "leak_named": ("named places, the photographs' drawn", False),
    "leak_open": ("no place named, the photographs' drawn", False),
    "leak_class": ("bare class, the photographs' place drawn", False),
    "cut": ("of the subject cut off", False),
}
_COMMON = ("dino", "prompt_fidelity", "pres", "div", "class_div", "drift")
# Columns of a section, and what it is about.
_SECTIONS = {
    "masks": (
        (*_COMMON, "places", "leak_named", "leak_open", "leak_class"),
        "Masks: five photographs, all before one and the same place under water",
    ),
    "masks alone": (
        (*_COMMON, "places", "leak_named", "leak_open", "leak_class"),
        "Masks where nothing keeps the class: the same photographs, no class images",
    ),
    "buckets": (
        (*_COMMON, "cut"),
        "Shapes: eight photographs of 3:4, 4:3, 9:16 and 16:9, the subject at a third of the "
        "longer side",
    ),
    "adapters": (
        (*_COMMON, "parameters"),
        "Adapters of about as many weights each, at one learning rate",
    ),
    "weights": (
        _COMMON,
        "Trained weights in bfloat16, rounded by chance, as `train.weight_dtype=bfloat16` has them",
    ),
}
Rows = dict[str, dict[int, dict[str, Any]]]


def summarize_section(rows: Rows) -> dict[str, Any]:
    """Every number of a section, over the subjects that all its rows have.

    rows: cells by row and subject, the usual way first
    """
    subjects = sorted(set.intersection(*(set(cells) for cells in rows.values())))
    baseline_row, *other_rows = rows
    last_scores_by_row = {
        row: [_read_last_scores(cells[s]) for s in subjects] for row, cells in rows.items()
    }
    return {
        "subjects": subjects,
        "rows": {
            row: {
                **{
                    key: compute_mean_and_deviation(
                        [scores[key] for scores in last_scores_by_row[row]]
                    )
                    for key in TITLES
                },
                "parameters": cells[subjects[0]]["parameters"],
            }
            for row, cells in rows.items()
            if subjects
        },
        "less_usual": {
            row: _compute_score_changes(last_scores_by_row[row], last_scores_by_row[baseline_row])
            for row in other_rows
            if subjects
        },
        "equal_likeness": {
            row: _compute_score_changes(*_read_at_equal_likeness(rows, row, baseline_row, subjects))
            for row in other_rows
            if subjects
        },
    }


def _read_last_scores(line: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = line["points"][max(line["points"], key=int)]["judged"]
    return scores


def _compute_score_changes(
    ours: list[dict[str, float]], baseline_scores: list[dict[str, float]]
) -> dict[str, Any]:
    """Paired differences: mean, deviation, and in how many subjects they are for the better."""
    changes_by_key: dict[str, Any] = {}
    for key, (_, more_is_better) in TITLES.items():
        score_changes = [a[key] - b[key] for a, b in zip(ours, baseline_scores, strict=True)]
        improvements = score_changes if more_is_better else [-change for change in score_changes]
        changes_by_key[key] = {
            **compute_mean_and_deviation(score_changes),
            "better_in": sum(c > 0 for c in improvements),
        }
    return changes_by_key


def _read_at_equal_likeness(
    rows: Rows, row: str, baseline_row: str, subjects: list[int]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Both where they are as faithful, subject by subject: at the lesser of their greatest."""
    score_pairs = []
    for subject in subjects:
        curves = [_read_curve(rows[name][subject]) for name in (row, baseline_row)]
        subject_fidelity = min(max(curve["dino"]) for curve in curves)
        score_pairs.append(
            [interpolate_scores_at_value(curve, "dino", subject_fidelity) for curve in curves]
        )
    return [ours for ours, _ in score_pairs], [theirs for _, theirs in score_pairs]


def _read_curve(line: dict[str, Any]) -> Curve:
    scored_points = sorted(line["points"].items(), key=lambda item: int(item[0]))
    return {key: [scores["judged"][key] for _, scores in scored_points] for key in TITLES}


def format_sections(record: dict[str, Any]) -> list[str]:
    """The record as lines of markdown."""
    study_setting = record["setting"]
    page_lines = [
        "## Masks, shapes and adapters",
        "",
        f"Adapters of UNet and text encoder, {study_setting['steps']} steps of "
        f"{study_setting['photographs_a_step']} photographs with "
        f"{study_setting['class_images']} class images, "
        "one seed; mean ± deviation over subjects (0 of a single one), and under it the same "
        "subjects' differences from the first row with the number of subjects in which they are "
        "for the better. "
        "Likeness is measured by usual photographs, not by those that were trained on. Made by "
        "`python -m benchmarks.options_study`; every cell is in `options.json`.",
    ]
    for name, section in record["sections"].items():
        column_keys, section_title = _SECTIONS[name]
        page_lines += [
            "",
            f"{section_title}; {describe_count(len(section['subjects']), 'subject')}:",
            "",
        ]
        page_lines += _format_table(section, column_keys)
    return page_lines


def _format_table(section: dict[str, Any], column_keys: tuple[str, ...]) -> list[str]:
    column_titles = [_format_score_title(key) for key in column_keys]
    table_lines = [
        "| | " + " | ".join(column_titles) + " |",
        "| --- |" + " ---: |" * len(column_keys),
    ]
    score_keys = [key for key in column_keys if key in TITLES]
    for row, spreads in section["rows"].items():
        cell_texts = [format_mean_and_deviation(spreads[key]) for key in score_keys]
        cell_texts += [f"{spreads[key]:,}" for key in column_keys if key not in TITLES]
        table_lines.append(f"| {row} | " + " | ".join(cell_texts) + " |")
    for comparison_title, changes_by_key in (
        ("less the first row", section["less_usual"]),
        ("the same at equal likeness", section["equal_likeness"]),
    ):
        for row, score_changes in changes_by_key.items():
            cell_texts = [
                f"{score_changes[key]['mean']:+.3f} ± {score_changes[key]['deviation']:.3f}, "
                f"{score_changes[key]['better_in']}"
                for key in score_keys
            ]
            cell_texts += [""] * (len(column_keys) - len(score_keys))
            table_lines.append(f"| {row}, {comparison_title} | " + " | ".join(cell_texts) + " |")
    return table_lines


def _format_score_title(key: str) -> str:
    if key not in TITLES:
        return "weights trained"
    score_title, more_is_better = TITLES[key]
    return f"{score_title}, {'higher' if more_is_better else 'lower'}"
