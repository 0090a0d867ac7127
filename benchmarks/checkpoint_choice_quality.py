"""How near the best checkpoint the automatic choice comes, on runs that go on for too long.

    python -m benchmarks.checkpoint_choice_quality --work out/study \
        --json benchmarks/results/chooser.json

Two kinds of runs, over subjects that nothing else was fitted on: the toy recipe for all weights at
a rate too high for it, and adapters without class images, which drift beyond the bound on their
way. Every checkpoint is scored twice, on images of different seeds: what `choice.protocol` asks
for, with up to four images a prompt, and again as many, which say how good the choice was. `brief`
are as few of them as the shipped protocol of that name draws. Resumable, cell by cell.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import read_conditions
from benchmarks.study import StudyCell, run_study
from benchmarks.study_scorer import CACHE_EVERY, copy_for_sampling
from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation.encoders import load_image_encoder
from dreambooth_ray.evaluation.image_metrics import photograph_similarity
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint, select_best_within_drift
from dreambooth_ray.evaluation.protocol import (
    EvaluationProtocol,
    EvaluationSpec,
    build_evaluation_prompts,
    load_protocol,
)
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request

STEPS, EVERY = 480, 60
SUBJECTS = (10, 11, 14, 15, 17, 19)
# Images a prompt, by side; half the UNet's evaluations, as in the study.
SIDES = {"chosen": 4, "judged": 4}
COUNTS = (1, 2, 4)
# Runs without class images, which preserve nothing; and the images of the protocol `brief`.
DRIFTING_STEPS, DRIFTING_EVERY, DRIFTING_SUBJECTS = 160, 20, (10, 11, 14, 15)
BRIEF = 8
WITHIN = 0.02
Points = list[ScoredCheckpoint]


def make_cells(subjects: tuple[int, ...]) -> list[StudyCell]:
    """One training a subject."""
    overrides = (f"train.steps={STEPS}", "prior.count=100", "train.lr=2e-4", "prior.weight=1.0")
    return [StudyCell(subject, "full", True, overrides) for subject in subjects]


def make_cells_without_class_images(subjects: tuple[int, ...]) -> list[StudyCell]:
    """One training of adapters a subject, without class images."""
    overrides = (f"train.steps={DRIFTING_STEPS}", "prior.count=0")
    return [StudyCell(subject, "lora", False, overrides) for subject in subjects]


def load_chosen_or_judged_protocol(name: str) -> EvaluationProtocol:
    """The protocol of the choice, with more images; the side `judged` has other seeds."""
    protocol_settings = load_protocol("toyworld-brief").model_dump()
    short_sampling_settings = {"solver": "dpmpp_2m", "num_inference_steps": 10, "other_prompts": ()}
    side_overrides = {"images_per_prompt": SIDES[name], "seed": list(SIDES).index(name)}
    return EvaluationProtocol.model_validate(
        {**protocol_settings, **short_sampling_settings, **side_overrides}
    )


class LikenessScorer:
    """Likeness of subject and bare class to the photographs, image by image."""

    def __init__(self, config: Config) -> None:
        self._words = config.subject.identifier, config.subject.class_noun
        self._encoder = load_image_encoder(load_chosen_or_judged_protocol("chosen").encoders.dino)
        photograph_paths = find_photographs(Path(config.subject.photos))
        self._photographs = self._encoder.embed_images(
            [read_photograph(p) for p in photograph_paths]
        )

    def __call__(self, parts: Components) -> dict[str, dict[str, Any]]:
        """By side: "dino", a mean over the prompts for each image's number, and "pres"; of few
        images as "brief_dino" and "brief_pres"."""
        engine = Engine(copy_for_sampling(parts))
        return {
            name: self._draw_and_score_likeness(engine, load_chosen_or_judged_protocol(name))
            for name in SIDES
        }

    def _draw_and_score_likeness(
        self, engine: Engine, protocol: EvaluationProtocol
    ) -> dict[str, Any]:
        prompts = build_evaluation_prompts(EvaluationSpec(protocol, "", *self._words, (), None))
        sampling_requests = [
            Request(
                q.prompt, q.seed, params=protocol.sampling_params, cache_every=CACHE_EVERY,
            )
            for q in prompts
        ]  # fmt: skip
        images = [output.image for output in engine.sample(sampling_requests)]
        likeness = photograph_similarity(self._encoder.embed_images(images), self._photographs)
        subject_likeness = likeness[[i for i, q in enumerate(prompts) if q.kind == "subject"]]
        class_likeness = likeness[[i for i, q in enumerate(prompts) if q.kind == "class"]]
        likeness_by_image = subject_likeness.reshape(-1, protocol.images_per_prompt)
        # One image of each of a few prompts, from one end of the list to the other.
        prompt_indices = torch.linspace(0, len(likeness_by_image) - 1, BRIEF).round().long()
        return {
            "dino": [round(v, 4) for v in likeness_by_image.mean(dim=0).tolist()],
            "pres": float(class_likeness.mean()),
            "brief_dino": round(float(likeness_by_image[prompt_indices, 0].mean()), 4),
            "brief_pres": float(class_likeness[:BRIEF].mean()),
        }


def read_scored_checkpoints(line: dict[str, Any], name: str, count: int | None) -> Points:
    """A run's checkpoints by the first `count` images a prompt of one side; None: by few of all."""
    if count is None:
        return [
            ScoredCheckpoint(int(step), scores[name]["brief_dino"], scores[name]["brief_pres"])
            for step, scores in line["points"].items()
        ]
    return [
        ScoredCheckpoint(
            int(step), statistics.fmean(scores[name]["dino"][:count]), scores[name]["pres"]
        )
        for step, scores in line["points"].items()
    ]


def compare_choice_with_best(
    line: dict[str, Any], count: int | None, max_drift: float
) -> dict[str, Any]:
    """One run: what the rule takes by `count` images a prompt, held against the best.

    count: None is few images of all
    """
    judged_by_step = {s.step: s for s in read_scored_checkpoints(line, "judged", SIDES["judged"])}
    chosen_checkpoint, best_checkpoint = (
        select_best_within_drift(read_scored_checkpoints(line, "chosen", count), max_drift),
        select_best_within_drift([*judged_by_step.values()], max_drift),
    )
    assert chosen_checkpoint is not None and best_checkpoint is not None
    chosen_as_judged, last_as_judged = (
        judged_by_step[chosen_checkpoint.step],
        judged_by_step[max(judged_by_step)],
    )
    return {
        "subject": line["subject"],
        "chosen": chosen_as_judged.step,
        "best": best_checkpoint.step,
        "fidelity": round(chosen_as_judged.fidelity, 4),
        "best_fidelity": round(best_checkpoint.fidelity, 4),
        "drift": round(chosen_as_judged.drift, 4),
        "shortfall": round(1 - chosen_as_judged.fidelity / best_checkpoint.fidelity, 4),
        "shortfall_of_the_last": round(1 - last_as_judged.fidelity / best_checkpoint.fidelity, 4),
    }


def summarize_runs(
    lines: list[dict[str, Any]], max_drift: float, counts: Sequence[int | None] = COUNTS
) -> dict[str, Any]:
    """By images a prompt: in how many runs the choice is within 2 % of the best."""
    summary_by_images_per_prompt = {}
    for images_per_prompt in counts:
        run_rows = [compare_choice_with_best(line, images_per_prompt, max_drift) for line in lines]
        fidelity_shortfalls = [r["shortfall"] for r in run_rows]
        last_steps = [max(map(int, line["points"])) for line in lines]
        summary_by_images_per_prompt[str(images_per_prompt or "brief")] = {
            "runs": len(run_rows),
            "within_2_percent": sum(
                r["shortfall"] <= WITHIN and r["drift"] <= max_drift for r in run_rows
            ),
            "worst": max(fidelity_shortfalls),
            "mean": round(statistics.fmean(fidelity_shortfalls), 4),
            "last_within_2_percent": sum(r["shortfall_of_the_last"] <= WITHIN for r in run_rows),
            "best_is_the_last": sum(
                row["best"] == step for row, step in zip(run_rows, last_steps, strict=True)
            ),
            "each": run_rows,
        }
    return summary_by_images_per_prompt


def list_checkpoint_steps(cell: StudyCell) -> tuple[int, ...]:
    """The steps of a cell's checkpoints."""
    if cell.prior:
        return tuple(range(EVERY, STEPS + 1, EVERY))
    return tuple(range(DRIFTING_EVERY, DRIFTING_STEPS + 1, DRIFTING_EVERY))


def main() -> None:
    """Run what is missing, then print and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--subjects", type=int, nargs="*", default=SUBJECTS)
    parser.add_argument("--drifting", type=int, nargs="*", default=DRIFTING_SUBJECTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    study_cells = make_cells(tuple(arguments.subjects))
    drifting_cells = make_cells_without_class_images(tuple(arguments.drifting))
    cell_records = run_study(
        [*study_cells, *drifting_cells],
        arguments.work,
        "chooser.jsonl",
        list_checkpoint_steps,
        LikenessScorer,
    )
    max_drift = ChoiceConfig().max_drift
    drifting_names = {cell.name for cell in make_cells_without_class_images((0,))}
    drifting_records = [line for line in cell_records if line["cell"] in drifting_names]
    long_run_records = [line for line in cell_records if line["cell"] not in drifting_names]
    record = {
        "by_pictures_a_prompt": summarize_runs(long_run_records, max_drift), "max_drift": max_drift,
        "drifting": summarize_runs(drifting_records, max_drift, (*COUNTS, None)),
        "setting": {
            "steps": STEPS, "every": EVERY, "cache_every": CACHE_EVERY, "brief": BRIEF,
            "drifting_steps": DRIFTING_STEPS, "drifting_every": DRIFTING_EVERY,
            "protocols": {
                name: load_chosen_or_judged_protocol(name).model_dump(mode="json")
                for name in SIDES
            },
        },
        "conditions": read_conditions(), "cells": cell_records,
    }  # fmt: skip
    print(json.dumps({key: record[key] for key in ("by_pictures_a_prompt", "drifting")}, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
