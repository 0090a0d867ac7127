"""What the cells of the study say together: means, pairs, and how well checkpoints are chosen."""

import statistics
from typing import Any

from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint, select_best_within_drift

# Column of the table: key of a score, and which way is better.
SCORE_TITLES = {
    "dino": "subject fidelity, higher",
    "prompt_fidelity": "prompt fidelity, higher",
    "pres": "PRES, lower",
    "drift": "other classes lost, lower",
    "div": "DIV, higher",
    "class_div": "DIV of the bare class, higher",
    "diversity": "colour entropy of the class, higher",
    "memorised": "copies of photographs, lower",
}
METHODS = ("full", "lora")
WITHIN = 0.02
# Scores along a training, by key.
Curve = dict[str, list[float]]


def summarize_cells(lines: list[dict[str, Any]], max_drift: float | None = None) -> dict[str, Any]:
    """Every number of the study.

    lines: cells, of which those of subjects that are not complete are left out
    """
    drift_bound = ChoiceConfig().max_drift if max_drift is None else max_drift
    cell_names = list(dict.fromkeys(line["cell"] for line in lines))
    cells_by_subject: dict[int, dict[str, dict[str, Any]]] = {}
    for cell_record in lines:
        cells_by_subject.setdefault(cell_record["subject"], {})[cell_record["cell"]] = cell_record
    complete_subjects = {
        s: cells for s, cells in cells_by_subject.items() if len(cells) == len(cell_names)
    }
    return {
        "subjects": sorted(complete_subjects),
        "table": {
            k: _make_score_row(
                [_read_last_scores(complete_subjects[s][k]) for s in sorted(complete_subjects)]
            )
            for k in cell_names
        },
        "with_less_without": {
            m: _compute_class_image_effects(list(complete_subjects.values()), m) for m in METHODS
        },
        "choice": _summarize_choices(
            [c for cells in complete_subjects.values() for c in cells.values()], drift_bound
        ),
    }


def _read_last_scores(cell_record: dict[str, Any]) -> dict[str, float]:
    """Scores after the last step, by the images that no choice has seen."""
    scores: dict[str, float] = cell_record["points"][max(cell_record["points"], key=int)]["judged"]
    return scores


def _make_score_row(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {key: compute_mean_and_deviation([row[key] for row in rows]) for key in SCORE_TITLES}


def compute_mean_and_deviation(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation; 0 of a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 4), "deviation": round(deviation, 4)}


def interpolate_scores_at_value(curve: Curve, key: str, value: float) -> dict[str, float]:
    """Every score where `key` first reaches a value, between two points by their distance.

    Before the first point nothing is known: it is taken as it is.
    """
    score_values = curve[key]
    reached_index = next(
        (k for k, reached in enumerate(score_values) if reached >= value), len(score_values) - 1
    )
    interpolation_weight = 0.0
    if reached_index:
        previous_score, reaching_score = (
            score_values[reached_index - 1],
            score_values[reached_index],
        )
        interpolation_weight = (
            min(1.0, max(0.0, (reaching_score - value) / (reaching_score - previous_score)))
            if reaching_score != previous_score
            else 0.0
        )
    return {
        name: (1 - interpolation_weight) * row[reached_index]
        + interpolation_weight * row[max(reached_index - 1, 0)]
        for name, row in curve.items()
    }


def _compute_class_image_effects(
    subjects: list[dict[str, dict[str, Any]]], method: str
) -> dict[str, Any]:
    """What class images change, subject by subject."""
    changes_by_score = {}
    for key in SCORE_TITLES:
        score_changes = [
            _read_last_scores(cells[f"{method}, with class images"])[key]
            - _read_last_scores(cells[f"{method}, without class images"])[key]
            for cells in subjects
        ]
        changes_by_score[key] = {
            **compute_mean_and_deviation(score_changes),
            "lower_in": sum(c < 0 for c in score_changes),
        }
    return changes_by_score


def _summarize_choices(cell_records: list[dict[str, Any]], bound: float) -> dict[str, Any]:
    """The checkpoint chosen by one set of images against the best one, by another set.

    Runs without a checkpoint within the bound are counted apart: there the rule asks for the least
    drift, and a fidelity near the best says nothing.
    """
    choice_rows = [
        _make_choice_row(cell_record, bound)
        for cell_record in cell_records
        if len(cell_record["points"]) > 1
    ]
    rows_within_drift = [row for row in choice_rows if row["best_drift"] <= bound]
    near_best_rows = [
        r for r in rows_within_drift if r["shortfall"] <= WITHIN and r["drift"] <= bound
    ]
    return {
        "max_drift": bound,
        "runs": len(rows_within_drift),
        "within_2_percent": len(near_best_rows),
        "same_checkpoint": sum(row["chosen"] == row["best"] for row in rows_within_drift),
        "best_is_the_last": sum(row["best"] == row["last"] for row in rows_within_drift),
        "worst": max((row["shortfall"] for row in rows_within_drift), default=None),
        "runs_beyond_the_bound": len(choice_rows) - len(rows_within_drift),
        "same_checkpoint_there": sum(
            r["chosen"] == r["best"] for r in choice_rows if r not in rows_within_drift
        ),
        "each": choice_rows,
    }


def _make_choice_row(cell_record: dict[str, Any], bound: float) -> dict[str, Any]:
    chosen_checkpoint, best_checkpoint = (
        _select_best_checkpoint(cell_record, name, bound) for name in ("chosen", "judged")
    )
    judged_by_step = {s.step: s for s in _read_scored_checkpoints(cell_record, "judged")}
    chosen_checkpoint_scores = judged_by_step[chosen_checkpoint.step]
    return {
        "subject": cell_record["subject"],
        "cell": cell_record["cell"],
        "chosen": chosen_checkpoint.step,
        "best": best_checkpoint.step,
        "last": max(judged_by_step),
        "fidelity": chosen_checkpoint_scores.fidelity,
        "drift": chosen_checkpoint_scores.drift,
        "best_fidelity": best_checkpoint.fidelity,
        "best_drift": best_checkpoint.drift,
        "shortfall": round(1 - chosen_checkpoint_scores.fidelity / best_checkpoint.fidelity, 4),
    }


def _read_scored_checkpoints(cell_record: dict[str, Any], name: str) -> list[ScoredCheckpoint]:
    return [
        ScoredCheckpoint(int(s), p[name]["dino"], p[name]["pres"])
        for s, p in cell_record["points"].items()
    ]


def _select_best_checkpoint(
    cell_record: dict[str, Any], name: str, bound: float
) -> ScoredCheckpoint:
    best_checkpoint = select_best_within_drift(_read_scored_checkpoints(cell_record, name), bound)
    assert best_checkpoint is not None
    return best_checkpoint


def format_page(results: dict[str, Any], trained: str) -> str:
    """The summary as markdown. trained: how long, in words"""
    header_line = "| | " + " | ".join(SCORE_TITLES.values()) + " |"
    page_lines = [
        "# Prior preservation, measured",
        "",
        f"{len(results['subjects'])} random toy subjects; after {trained}; mean ± deviation over "
        "subjects. Made by `python -m benchmarks.study`; every cell is in `study.json`.",
        "",
        header_line,
        "| --- |" + " ---: |" * len(SCORE_TITLES),
        *(
            _format_table_row(kind, [format_mean_and_deviation(row[key]) for key in SCORE_TITLES])
            for kind, row in results["table"].items()
        ),
        "",
        "What class images change, subject by subject (mean ± deviation, lower in how many):",
        "",
        header_line,
        "| --- |" + " ---: |" * len(SCORE_TITLES),
        *(
            _format_table_row(
                method,
                [
                    f"{format_mean_and_deviation(row[key])}, {row[key]['lower_in']}"
                    for key in SCORE_TITLES
                ],
            )
            for method, row in results["with_less_without"].items()
        ),
        "",
        *_describe_checkpoint_choices(results["choice"]),
    ]
    return "\n".join(page_lines) + "\n"


def _describe_checkpoint_choices(choice: dict[str, Any]) -> list[str]:
    if not choice["runs"]:
        return []
    return [
        f"A checkpoint chosen by the rule (most faithful with PRES up to {choice['max_drift']}) "
        "from one set of images, against the best by the same rule from another set: of "
        f"{choice['runs']} runs with a checkpoint within the bound the choice is within it and "
        f"within 2 % of the best one's fidelity in {choice['within_2_percent']}, the very same in "
        f"{choice['same_checkpoint']}; the worst falls short by {choice['worst']:.1%}. In "
        f"{choice['best_is_the_last']} the best is the last one, so that to take the last would do "
        "there too.",
        "",
        f"{choice['runs_beyond_the_bound']} more runs have no checkpoint within it; there the rule "
        f"takes the one that drifted least, the same one in {choice['same_checkpoint_there']}.",
    ]


def _format_table_row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def format_mean_and_deviation(spread: dict[str, float]) -> str:
    """As "0.123 ± 0.045"."""
    return f"{spread['mean']:.3f} ± {spread['deviation']:.3f}"
