"""Learning rate and weight of the class images, of both toy recipes, around what they say.

    python -m benchmarks.sweep --work out/study --json benchmarks/results/sweep.json

Trainings as in `benchmarks.study`, over a few of its subjects, but as long and with as many class
images as the recipes; resumable, cell by cell. The best is the row with the greatest likeness x
agreement among those whose PRES is within the bound that `choice.max_drift` has: who takes a
recipe wants the subject, and in the scene that was asked for. A recipe has to clear the demo's bars
as well (`make bars`): of rows that noise alone sets apart it is one that does.
"""

import argparse
import json
import statistics
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import read_conditions
from benchmarks.study import BATCH, RECIPES, StudyCell, run_study
from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.config.load import load_config

STEPS, CLASS_IMAGES = 400, 100
# By method: learning rates, weights of the class images.
GRIDS = {
    "full": (("5e-5", "7e-5", "1e-4", "2e-4"), ("1.0", "2.0")),
    "lora": (("5e-4", "1e-3", "2e-3"), ("1.0",)),
}
SUBJECTS = (6, 0)
KEYS = ("dino", "prompt_fidelity", "pres", "div", "diversity", "drift", "memorised")
TITLES = ("likeness", "agreement", "PRES", "DIV", "colour entropy", "others lost", "copies")


def make_study_cells(subjects: tuple[int, ...]) -> list[StudyCell]:
    """Every pair of values of every method, subject by subject."""
    length_overrides = (f"train.steps={STEPS}", f"prior.count={CLASS_IMAGES}")
    return [
        StudyCell(
            s,
            method,
            True,
            (*length_overrides, f"train.lr={learning_rate}", f"prior.weight={prior_weight}"),
        )
        for method, s in product(GRIDS, subjects)
        for learning_rate, prior_weight in product(*GRIDS[method])
    ]


def make_sweep_rows(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a method and pair of values: means over the subjects that the method has whole."""
    scores_by_method: dict[str, dict[tuple[float, float], dict[int, dict[str, float]]]] = {}
    for cell_record in lines:
        method, *_, learning_rate_text, prior_weight_text = cell_record["cell"].split(", ")
        grid_point = (
            float(learning_rate_text.partition("=")[2]),
            float(prior_weight_text.partition("=")[2]),
        )
        scores = cell_record["points"][max(cell_record["points"], key=int)]["judged"]
        scores_by_method.setdefault(method, {}).setdefault(grid_point, {})[
            cell_record["subject"]
        ] = scores
    sweep_rows = []
    for method, scores_by_grid_point in scores_by_method.items():
        subjects = sorted(
            set.intersection(*(set(scores) for scores in scores_by_grid_point.values()))
        )
        scored_grid_points = sorted(scores_by_grid_point.items())
        sweep_rows += [
            _make_sweep_row(method, grid_point, scores, subjects)
            for grid_point, scores in scored_grid_points
            if subjects
        ]
    return sweep_rows


def _make_sweep_row(
    method: str,
    grid_point: tuple[float, float],
    scores: dict[int, dict[str, float]],
    subjects: list[int],
) -> dict[str, Any]:
    return {
        "method": method,
        "lr": grid_point[0],
        "prior_weight": grid_point[1],
        "subjects": subjects,
        "score": [round(scores[s]["dino"] * scores[s]["prompt_fidelity"], 4) for s in subjects],
        **{key: round(statistics.fmean(scores[s][key] for s in subjects), 4) for key in KEYS},
    }


def select_best_sweep_row(rows: list[dict[str, Any]], max_drift: float) -> dict[str, Any]:
    """The best within the bound; where none is, the one that drifted least."""
    rows_within_drift = [row for row in rows if row["pres"] <= max_drift]
    if rows_within_drift:
        return max(rows_within_drift, key=lambda row: statistics.fmean(row["score"]))
    return min(rows, key=lambda row: float(row["pres"]))


def compare_best_with_recipe(
    method: str, rows: list[dict[str, Any]], max_drift: float
) -> dict[str, Any]:
    """The best of a method beside its recipe, subject by subject."""
    recipe, best_sweep_row = (
        load_config(RECIPES[method], []),
        select_best_sweep_row(rows, max_drift),
    )
    recipe_values = recipe.train.lr, recipe.prior.weight
    recipe_row = next(
        (row for row in rows if (row["lr"], row["prior_weight"]) == recipe_values), None
    )
    recipe_comparison = {
        "recipe": {
            "name": RECIPES[method],
            "lr": recipe_values[0],
            "prior_weight": recipe_values[1],
        },
        "best": {key: best_sweep_row[key] for key in ("lr", "prior_weight")},
        "recipe_is_best": recipe_row is best_sweep_row,
    }
    if recipe_row is None:
        return recipe_comparison
    score_gains = [
        round(b - o, 4) for b, o in zip(best_sweep_row["score"], recipe_row["score"], strict=True)
    ]
    return {**recipe_comparison, "best_less_recipe": score_gains}


def format_page(rows: list[dict[str, Any]], comparisons: dict[str, dict[str, Any]]) -> str:
    """The rows as markdown."""
    table_header = ("method", "lr", "weight", "likeness x agreement", *TITLES)
    page_lines = [
        "# Recipes, swept",
        "",
        f"{STEPS} steps of {BATCH} photographs, {CLASS_IMAGES} class images, as the recipes have "
        "it; means over toy subjects. Made by `python -m benchmarks.sweep`; the rule is in its "
        "first lines. ◀ is the best of a method by that rule, (r) what the recipe has.",
        "",
        f"| {' | '.join(table_header)} |",
        "| --- |" + " ---: |" * (len(table_header) - 1),
    ]
    for row in rows:
        recipe_comparison = comparisons[row["method"]]
        recipe_and_best_marks = " (r)" * _matches_setting(
            row, recipe_comparison["recipe"]
        ) + " ◀" * _matches_setting(row, recipe_comparison["best"])
        score_columns = [
            f"{statistics.fmean(row['score']):.3f}",
            *(f"{row[key]:.3f}" for key in KEYS),
        ]
        setting_columns = [
            f"{row['method']}{recipe_and_best_marks}",
            f"{row['lr']:g}",
            f"{row['prior_weight']:g}",
        ]
        page_lines.append(f"| {' | '.join([*setting_columns, *score_columns])} |")
    for method, recipe_comparison in comparisons.items():
        gains_text = ", ".join(
            f"{gain:+.3f}" for gain in recipe_comparison.get("best_less_recipe", ())
        )
        page_lines += ["", f"The best less the recipe, {method}, subject by subject: {gains_text}."]
    return "\n".join(page_lines) + "\n"


def _matches_setting(row: dict[str, Any], setting: dict[str, Any]) -> bool:
    return all(row[key] == setting[key] for key in ("lr", "prior_weight"))


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path, help="the record; a table goes beside it as .md")
    parser.add_argument("--subjects", type=int, nargs="*", default=SUBJECTS)
    parser.add_argument("--methods", nargs="*", default=tuple(GRIDS), choices=GRIDS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    study_cells = [
        c for c in make_study_cells(tuple(arguments.subjects)) if c.method in arguments.methods
    ]
    cell_records = run_study(study_cells, arguments.work, "sweep.jsonl", lambda cell: (STEPS,))
    study_cell_keys = {(cell.subject, cell.name) for cell in study_cells}
    sweep_rows = make_sweep_rows(
        [
            cell_record
            for cell_record in cell_records
            if (cell_record["subject"], cell_record["cell"]) in study_cell_keys
        ]
    )
    drift_bound = ChoiceConfig().max_drift
    recipe_comparisons = {
        m: compare_best_with_recipe(m, [r for r in sweep_rows if r["method"] == m], drift_bound)
        for m in arguments.methods
    }
    sweep_record = {
        "rows": sweep_rows, "max_drift": drift_bound, "verdicts": recipe_comparisons,
        "setting": {"steps": STEPS, "photographs_a_step": BATCH, "class_images": CLASS_IMAGES},
        "conditions": read_conditions(),
    }  # fmt: skip
    print(json.dumps(sweep_record, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(sweep_record, indent=1) + "\n")
        arguments.json.with_suffix(".md").write_text(format_page(sweep_rows, recipe_comparisons))


if __name__ == "__main__":
    main()
