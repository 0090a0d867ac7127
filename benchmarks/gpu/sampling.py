"""The engine and diffusers' pipeline on one device, and what half precision does to images."""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from benchmarks.gpu import device as devices
from benchmarks.random_models import ModelSize, make_random_components
from benchmarks.sample_theme import (
    make_equal_requests,
    make_mixed_requests,
    sample_batch_with_diffusers,
)
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.precision import resolve_sampling_dtype
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request


def measure(size: ModelSize, device: torch.device, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds for one image, eight alike and eight mixed, beside the pipeline; waits a step."""
    components = make_random_components(size, device)
    dtype = resolve_sampling_dtype(device, components.family)
    peer_components = copy.deepcopy(components)
    record: dict[str, Any] = {"dtype": str(dtype)}
    devices.free_memory(device)
    engine = Engine(components, device=str(device), dtype=dtype)
    single_requests, equal_requests = make_equal_requests(1, steps), make_equal_requests(8, steps)
    mixed_requests = make_mixed_requests(1 if steps > 10 else 5)
    for name, sampling_requests in (
        ("one image", single_requests),
        ("eight alike", equal_requests),
        ("eight mixed", mixed_requests),
    ):
        engine.sample(sampling_requests)
        engine.sample(sampling_requests)
        mean_s = devices.time_work(partial(engine.sample, sampling_requests), device, repeats)
        record[name] = {"ours_s": round(mean_s, 4)}
    record["ours"] = devices.read_peak(device)
    with devices.count_host_waits(device) as waits_by_line:
        engine.sample(single_requests)
    record["waits_of_one_image"] = dict(waits_by_line)
    # What holds the model goes, so that the peer's peak is its own.
    engine = components = None  # type: ignore[assignment]
    devices.free_memory(device)
    pipeline = make_pipeline(peer_components, device, dtype)
    request_groups_by_case = {
        "one image": [single_requests],
        "eight alike": [equal_requests],
        "eight mixed": [[r] for r in mixed_requests],
    }
    for name, request_groups in request_groups_by_case.items():
        sample_batch_with_diffusers(pipeline, request_groups[0])
        mean_s = devices.time_work(
            partial(_sample_groups, pipeline, request_groups), device, repeats
        )
        record[name] |= {
            "diffusers_s": round(mean_s, 4),
            "ratio": round(mean_s / record[name]["ours_s"], 3),
        }
    record["diffusers"] = devices.read_peak(device)
    return record


def _sample_groups(pipeline: StableDiffusionPipeline, request_groups: list[list[Request]]) -> None:
    for requests in request_groups:
        sample_batch_with_diffusers(pipeline, requests)


def make_pipeline(
    parts: Components, device: torch.device, dtype: torch.dtype
) -> StableDiffusionPipeline:
    """diffusers' pipeline of these parts, all in `dtype`, as its documentation has it."""
    pipeline = StableDiffusionPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=parts.unet,
        scheduler=DDIMScheduler.from_config(parts.schedule.config), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(device, dtype)  # fmt: skip
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure_half_error(device: torch.device, steps: int) -> dict[str, Any]:
    """How far images of the toy model in half precision are from those in float32."""
    sampling_requests = [
        Request(f"a red {noun} on the beach", seed, num_inference_steps=steps)
        for seed, noun in enumerate(("robot", "car", "teapot", "dog"))
    ]
    outputs_by_dtype = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if device.type == "cpu" and dtype == torch.float16:
            continue
        engine = Engine(model_directory("toyworld"), device=str(device), dtype=dtype)
        outputs_by_dtype[dtype] = engine.sample(sampling_requests)
    float32_outputs = outputs_by_dtype.pop(torch.float32)
    return {
        str(dtype): _measure_half_output_errors(float32_outputs, images)
        for dtype, images in outputs_by_dtype.items()
    }


def _measure_half_output_errors(reference: list[Any], outputs: list[Any]) -> dict[str, float]:
    output_pairs = list(zip(reference, outputs, strict=True))
    latent_errors = [(a.latents - b.latents).square().mean().sqrt() for a, b in output_pairs]
    pixel_errors = [
        np.abs(np.asarray(a.image, dtype=float) - np.asarray(b.image, dtype=float)).mean()
        for a, b in output_pairs
    ]
    return {
        "latents_rms": round(float(torch.stack(latent_errors).mean()), 5),
        "pixel_levels_mean": round(float(np.mean(pixel_errors)), 3),
    }
