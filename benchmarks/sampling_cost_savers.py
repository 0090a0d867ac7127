"""What each cost saver gains in time and costs in quality, on the toy world.

    python -m benchmarks.sampling_cost_savers --count 100 --json benchmarks/results/savers.json

Quality is the share of attributes that the evaluator reads as prompted, and the mean
distance in latents to the exact image. Times are of one thread, savers in turn.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.toyworld.evaluator import load_evaluator, predict_attributes
from dreambooth_ray.toyworld.scoring_prompts import attribute_prompts

SAVERS: dict[str, dict[str, Any]] = {
    "exact": {},
    "guidance_every=2": {"guidance_every": 2},
    "guidance_every=3": {"guidance_every": 3},
    "guidance_interval=0-0.6": {"guidance_interval": (0.0, 0.6)},
    "guidance_interval=0.2-0.8": {"guidance_interval": (0.2, 0.8)},
    "cache_every=2": {"cache_every": 2},
    "cache_every=3": {"cache_every": 3},
    "cache_every=2, guidance_every=2": {"cache_every": 2, "guidance_every": 2},
    "dpmpp_2m, 12 steps": {"solver": "dpmpp_2m", "num_inference_steps": 12},
}


def measure_cost_savers(count: int) -> dict[str, Any]:
    """Every saver over the same held-out prompts, in chunks, so that drift of the clock evens."""
    torch.set_num_threads(1)
    engine, attribute_evaluator = Engine(model_directory("toyworld")), load_evaluator()
    prompts = attribute_prompts(count)
    sampling_requests = [Request(prompt, k) for k, (prompt, _) in enumerate(prompts)]
    engine.sample(sampling_requests[:8])
    outputs_by_cost_saver: dict[str, list[Any]] = {name: [] for name in SAVERS}
    times_by_cost_saver: dict[str, list[float]] = {name: [] for name in SAVERS}
    for first_index in range(0, count, 8):
        for cost_saver_name, cost_saver_options in SAVERS.items():
            request_group = [
                replace(r, **cost_saver_options)
                for r in sampling_requests[first_index : first_index + 8]
            ]
            start_s = time.perf_counter()
            outputs_by_cost_saver[cost_saver_name] += engine.sample(request_group)
            times_by_cost_saver[cost_saver_name].append(time.perf_counter() - start_s)
    rows_by_cost_saver = {}
    for cost_saver_name, cost_saver_outputs in outputs_by_cost_saver.items():
        image_attributes = predict_attributes(
            attribute_evaluator, [d.image for d in cost_saver_outputs]
        )
        speed_ratios = sorted(
            e / t
            for e, t in zip(
                times_by_cost_saver["exact"], times_by_cost_saver[cost_saver_name], strict=True
            )
        )
        latent_errors = [
            float((d.latents - e.latents).square().mean().sqrt())
            for d, e in zip(cost_saver_outputs, outputs_by_cost_saver["exact"], strict=True)
        ]
        rows_by_cost_saver[cost_saver_name] = {
            "times_faster_median": round(speed_ratios[len(speed_ratios) // 2], 3),
            "latent_rmse": round(sum(latent_errors) / len(latent_errors), 4),
            **{
                head: round(
                    image_attributes.accuracy(head, [truth[head] for _, truth in prompts]), 3
                )
                for head in prompts[0][1]
            },
        }
    return {
        "count": count,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows_by_cost_saver,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    record_text = json.dumps(measure_cost_savers(arguments.count), indent=1)
    print(record_text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(record_text + "\n")


if __name__ == "__main__":
    main()
