"""How near the best checkpoint the automatic choice comes, on runs that go on for too long.

    python -m benchmarks.chooser --work out/study --json benchmarks/results/chooser.json

The toy recipe for all weights at a rate too high for it, so that the last checkpoint need not be
the best, over subjects that nothing else was fitted on. Every checkpoint is scored twice, on
images of different seeds: what `choice.protocol` asks for, with up to four images a prompt, and
again as many, which say how good the choice was. Resumable, cell by cell.
"""

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import conditions
from benchmarks.study import Cell, study
from benchmarks.study_judge import CACHE_EVERY, fast_copy
from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.evaluation.encoders import load_encoder
from dreambooth_ray.evaluation.image_metrics import similarity
from dreambooth_ray.evaluation.pareto_front import Scored, best
from dreambooth_ray.evaluation.protocol import Protocol, Spec, evaluation_prompts, load_protocol
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request

STEPS, EVERY = 480, 60
SUBJECTS = (10, 11, 14, 15, 17, 19)
# Images a prompt, by side; half the UNet's evaluations, as in the study.
SIDES = {"chosen": 4, "judged": 4}
COUNTS = (1, 2, 4)
WITHIN = 0.02
Points = list[Scored]


def cells(subjects: tuple[int, ...]) -> list[Cell]:
    """One training a subject."""
    values = (f"train.steps={STEPS}", "prior.count=100", "train.lr=2e-4", "prior.weight=1.0")
    return [Cell(subject, "full", True, values) for subject in subjects]


def side(name: str) -> Protocol:
    """The protocol of the choice, with more images; judged by other seeds."""
    base = load_protocol(ChoiceConfig().protocol).model_dump()
    short = {"solver": "dpmpp_2m", "num_inference_steps": 10, "other_prompts": ()}
    asked = {"images_per_prompt": SIDES[name], "seed": list(SIDES).index(name)}
    return Protocol.model_validate({**base, **short, **asked})


class Judge:
    """Likeness of subject and bare class to the photographs, image by image."""

    def __init__(self, config: Config) -> None:
        self._words = config.subject.identifier, config.subject.class_noun
        self._encoder = load_encoder(side("chosen").encoders.dino)
        paths = find_photographs(Path(config.subject.photos))
        self._photographs = self._encoder.embed_images([read_photograph(p) for p in paths])

    def __call__(self, parts: Components) -> dict[str, dict[str, Any]]:
        """By side: "dino", a mean over the prompts for each image's number, and "pres"."""
        engine = Engine(fast_copy(parts))
        return {name: self._score(engine, side(name)) for name in SIDES}

    def _score(self, engine: Engine, protocol: Protocol) -> dict[str, Any]:
        asked = evaluation_prompts(Spec(protocol, "", *self._words, (), None))
        requests = [
            Request(
                q.prompt, q.seed, num_inference_steps=protocol.num_inference_steps,
                guidance_scale=protocol.guidance_scale, solver=protocol.solver,
                cache_every=CACHE_EVERY,
            )
            for q in asked
        ]  # fmt: skip
        images = [drawn.image for drawn in engine.draw(requests)]
        likeness = similarity(self._encoder.embed_images(images), self._photographs)
        subject = likeness[[i for i, q in enumerate(asked) if q.kind == "subject"]]
        bare = likeness[[i for i, q in enumerate(asked) if q.kind == "class"]]
        by_number = subject.reshape(-1, protocol.images_per_prompt).mean(dim=0)
        return {"dino": [round(v, 4) for v in by_number.tolist()], "pres": float(bare.mean())}


def points(line: dict[str, Any], name: str, count: int) -> Points:
    """A run's checkpoints by the first `count` images a prompt of one side."""
    return [
        Scored(int(step), statistics.fmean(found[name]["dino"][:count]), found[name]["pres"])
        for step, found in line["points"].items()
    ]


def row(line: dict[str, Any], count: int, max_drift: float) -> dict[str, Any]:
    """One run: what the rule takes by `count` images a prompt, held against the best."""
    truth = {s.step: s for s in points(line, "judged", SIDES["judged"])}
    taken, top = best(points(line, "chosen", count), max_drift), best([*truth.values()], max_drift)
    assert taken is not None and top is not None
    chosen, last = truth[taken.step], truth[max(truth)]
    return {
        "subject": line["subject"],
        "chosen": chosen.step,
        "best": top.step,
        "fidelity": round(chosen.fidelity, 4),
        "best_fidelity": round(top.fidelity, 4),
        "drift": round(chosen.drift, 4),
        "shortfall": round(1 - chosen.fidelity / top.fidelity, 4),
        "shortfall_of_the_last": round(1 - last.fidelity / top.fidelity, 4),
    }


def summary(lines: list[dict[str, Any]], max_drift: float) -> dict[str, Any]:
    """By images a prompt: in how many runs the choice is within 2 % of the best."""
    found = {}
    for count in COUNTS:
        rows = [row(line, count, max_drift) for line in lines]
        shortfalls = [r["shortfall"] for r in rows]
        found[str(count)] = {
            "runs": len(rows),
            "within_2_percent": sum(
                r["shortfall"] <= WITHIN and r["drift"] <= max_drift for r in rows
            ),
            "worst": max(shortfalls),
            "mean": round(statistics.fmean(shortfalls), 4),
            "last_within_2_percent": sum(r["shortfall_of_the_last"] <= WITHIN for r in rows),
            "best_is_the_last": sum(r["best"] == STEPS for r in rows),
            "each": rows,
        }
    return found


def main() -> None:
    """Run what is missing, then print and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="where cells are kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--subjects", type=int, nargs="*", default=SUBJECTS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    todo, steps = cells(tuple(given.subjects)), tuple(range(EVERY, STEPS + 1, EVERY))
    lines = study(todo, given.work, "chooser.jsonl", lambda cell: steps, Judge)
    bound = ChoiceConfig().max_drift
    result = {
        "by_pictures_a_prompt": summary(lines, bound), "max_drift": bound,
        "setting": {
            "steps": STEPS, "every": EVERY, "cache_every": CACHE_EVERY,
            "protocols": {name: side(name).model_dump(mode="json") for name in SIDES},
        },
        "conditions": conditions(), "cells": lines,
    }  # fmt: skip
    print(json.dumps(result["by_pictures_a_prompt"], indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
