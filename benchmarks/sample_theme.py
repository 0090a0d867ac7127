"""Theme `sample`: the engine against diffusers' StableDiffusionPipeline, one thread each.

The pipeline is set up as diffusers' documentation recommends where memory is no matter: its own
DDIM scheduler, one call for a batch of equal settings, the UNet in channels_last. It can't mix
numbers of steps or guidance scales in a call, so mixed requests are sampled one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from benchmarks.ceiling import count_unet_flops, measure_ceilings
from benchmarks.measure import BenchmarkCase, compare_sides, make_timed
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request

NOUNS = ("robot", "car", "teapot", "flower", "star", "dog", "house", "fish")
STEPS = (15, 20, 25, 30, 20, 25, 35, 30)
GUIDANCE = (3.0, 5.0, 7.5, 2.0, 4.0, 6.0, 3.5, 9.0)


def make_equal_requests(count: int, steps: int) -> list[Request]:
    """Requests that differ in prompt and seed alone."""
    return [
        Request(f"a red {NOUNS[k % 8]} on the beach", k, num_inference_steps=steps)
        for k in range(count)
    ]


def make_mixed_requests(divisor: int = 1) -> list[Request]:
    """Eight requests of different steps, seeds and guidance."""
    return [
        Request(
            request.prompt,
            request.seed,
            num_inference_steps=steps // divisor,
            guidance_scale=scale,
        )
        for request, steps, scale in zip(make_equal_requests(8, 1), STEPS, GUIDANCE, strict=True)
    ]


def load_diffusers_pipeline(model: str) -> StableDiffusionPipeline:
    """The peer, with the solver that the requests name."""
    pipeline = load_pipeline(model_directory(model))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def sample_batch_with_diffusers(
    pipeline: StableDiffusionPipeline, requests: list[Request]
) -> list[Any]:
    """One call of the pipeline for requests of equal steps and guidance."""
    first_request = requests[0]
    images: list[Any] = pipeline(
        [r.prompt for r in requests],
        num_inference_steps=first_request.params.num_inference_steps,
        guidance_scale=first_request.params.guidance_scale,
        generator=[torch.Generator().manual_seed(r.seed) for r in requests],
    ).images
    return images


def sample_one_by_one(pipeline: StableDiffusionPipeline, requests: list[Request]) -> list[Any]:
    """One call for each request."""
    return [sample_batch_with_diffusers(pipeline, [r])[0] for r in requests]


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """One image at a time, eight alike at once, eight mixed."""
    torch.set_num_threads(1)
    # As replicas have it; other engines record a forward once that has become worth it.
    engine = Engine(model_directory(setting.model), lives_long=True)
    pipeline = load_diffusers_pipeline(setting.model)
    num_steps, num_pairs = setting.pick(8, 25), setting.pick(3, 12)
    single_request, equal_requests = (
        make_equal_requests(1, num_steps),
        make_equal_requests(8, num_steps),
    )
    mixed_requests = make_mixed_requests(setting.pick(2, 1))

    def compare_engine_with_pipeline(
        name: str, requests: list[Request], theirs: Callable[..., Any], bar: float
    ) -> dict[str, Any]:
        return compare_sides(
            BenchmarkCase(name, "diffusers", len(requests), "images", bar),
            make_timed(lambda: engine.sample(requests)),
            make_timed(lambda: theirs(pipeline, requests)),
            num_pairs,
        )

    cases = [
        compare_engine_with_pipeline(
            "eight mixed requests", mixed_requests, sample_one_by_one, 1.6
        ),
        compare_engine_with_pipeline(
            "one image at a time", single_request, sample_batch_with_diffusers, 1.0
        ),
        compare_engine_with_pipeline(
            "batch of eight", equal_requests, sample_batch_with_diffusers, 1.0
        ),
    ]
    return {
        "headline": {"diffusers": "eight mixed requests"},
        "cases": cases,
        "configuration": {
            "solver": "ddim", "side_px": engine.model_side_px, "steps": num_steps,
            "mixed_steps": [r.params.num_inference_steps for r in mixed_requests],
            "mixed_guidance": [r.params.guidance_scale for r in mixed_requests],
            "dtype": "float32", "max_batch": engine.max_batch,
        },
        "utilisation": _compute_utilisation(setting, engine.model_side_px, num_steps, cases),
    }  # fmt: skip


def _compute_utilisation(
    setting: BenchmarkSettings, side_px: int, steps: int, cases: list[dict[str, Any]]
) -> dict[str, Any]:
    """Share of the machine's matmul rate that each side's UNet operations reach."""
    components, matmul_gflops = (
        load_components(model_directory(setting.model)),
        measure_ceilings()["matmul_gflops"],
    )
    gflop_per_image = (
        2 * count_unet_flops(components.unet, 1, side_px, components.latent_factor) * steps / 1e9
    )
    single_case = next(c for c in cases if c["case"] == "one image at a time")
    batch_case = next(c for c in cases if c["case"] == "batch of eight")
    return {
        "gflop_an_image": round(gflop_per_image, 2),
        **{
            f"{side}, {case['case']}": round(
                case[side]["median"] * gflop_per_image / matmul_gflops, 3
            )
            for case in (single_case, batch_case)
            if "ratio" in case
            for side in ("ours", "theirs")
        },
    }
