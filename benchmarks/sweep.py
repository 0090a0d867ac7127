"""Learning rate against the weight of the class images, of the toy recipe for all weights.

    python -m benchmarks.sweep --work out/study --json benchmarks/results/sweep.json

Trainings as in `benchmarks.study`, over a few of its subjects; resumable, cell by cell. The best
is the most faithful whose PRES is within the bound that `choice.max_drift` has.
"""

import argparse
import json
import statistics
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import conditions
from benchmarks.study import BATCH, NUM_CLASS_IMAGES, STEPS, Cell, study
from dreambooth_ray.config.choice import ChoiceConfig
from dreambooth_ray.config.load import load_config
from dreambooth_ray.evaluation.choice import Scored, best

RECIPE = "toy-robot.yaml"
RATES, WEIGHTS = ("5e-5", "1e-4", "2e-4"), ("1.0", "2.0")
SUBJECTS = (6, 0)
KEYS = ("dino", "prompt_fidelity", "pres", "div", "diversity", "drift", "memorised")


def cells(subjects: tuple[int, ...]) -> list[Cell]:
    """Every pair of values, subject by subject."""
    return [
        Cell(s, "full", True, (f"train.lr={rate}", f"prior.weight={weight}"))
        for s, rate, weight in product(subjects, RATES, WEIGHTS)
    ]


def table(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a pair of values: means over the subjects that have all pairs."""
    by_pair: dict[tuple[float, float], dict[int, dict[str, float]]] = {}
    for line in lines:
        rate, weight = (float(part.partition("=")[2]) for part in line["cell"].split(", ")[-2:])
        scores = line["points"][max(line["points"], key=int)]["judged"]
        by_pair.setdefault((rate, weight), {})[line["subject"]] = scores
    whole = set.intersection(*(set(found) for found in by_pair.values()))
    return [
        {
            "lr": rate,
            "prior_weight": weight,
            "subjects": sorted(whole),
            **{key: round(statistics.fmean(found[s][key] for s in whole), 4) for key in KEYS},
        }
        for (rate, weight), found in by_pair.items()
        if whole
    ]


def best_row(rows: list[dict[str, Any]], max_drift: float) -> dict[str, Any]:
    """By the rule that checkpoints are chosen by."""
    found = best([Scored(k, row["dino"], row["pres"]) for k, row in enumerate(rows)], max_drift)
    assert found is not None
    return rows[found.step]


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    lines = study(cells(SUBJECTS), given.work, "sweep.jsonl", followed=0)
    rows, bound = table(lines), ChoiceConfig().max_drift
    recipe = load_config(RECIPE, [])
    result = {
        "rows": rows,
        "max_drift": bound,
        "best": best_row(rows, bound),
        "recipe": {"lr": recipe.train.lr, "prior_weight": recipe.prior.weight},
        "setting": {
            "recipe": RECIPE, "steps": STEPS, "photographs_a_step": BATCH,
            "class_images": NUM_CLASS_IMAGES,
        },
        "conditions": conditions(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
