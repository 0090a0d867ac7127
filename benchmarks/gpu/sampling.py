"""The engine and diffusers' pipeline on one device, and what half precision does to images."""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from benchmarks.gpu import device as devices
from benchmarks.random_models import ModelSize, make_parts
from benchmarks.sample_theme import make_equal_requests, make_mixed_requests, sample_batch
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.precision import resolve_sampling_dtype
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request


def measure(size: ModelSize, device: torch.device, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds for one image, eight alike and eight mixed, beside the pipeline; waits a step."""
    parts = make_parts(size, device)
    dtype = resolve_sampling_dtype(device, parts.family)
    peer_parts = copy.deepcopy(parts)
    record: dict[str, Any] = {"dtype": str(dtype)}
    devices.free_memory(device)
    engine = Engine(parts, device=str(device), dtype=dtype)
    single, alike = make_equal_requests(1, steps), make_equal_requests(8, steps)
    mixed = make_mixed_requests(1 if steps > 10 else 5)
    for name, requests in (("one image", single), ("eight alike", alike), ("eight mixed", mixed)):
        engine.sample(requests)
        engine.sample(requests)
        seconds = devices.time_work(partial(engine.sample, requests), device, repeats)
        record[name] = {"ours_s": round(seconds, 4)}
    record["ours"] = devices.read_peak(device)
    with devices.count_waits(device) as waits:
        engine.sample(single)
    record["waits_of_one_image"] = dict(waits)
    # What holds the model goes, so that the peer's peak is its own.
    engine = parts = None  # type: ignore[assignment]
    devices.free_memory(device)
    pipeline = make_pipeline(peer_parts, device, dtype)
    batches = {"one image": [single], "eight alike": [alike], "eight mixed": [[r] for r in mixed]}
    for name, calls in batches.items():
        sample_batch(pipeline, calls[0])
        seconds = devices.time_work(partial(_sample_calls, pipeline, calls), device, repeats)
        record[name] |= {
            "diffusers_s": round(seconds, 4),
            "ratio": round(seconds / record[name]["ours_s"], 3),
        }
    record["diffusers"] = devices.read_peak(device)
    return record


def _sample_calls(pipeline: StableDiffusionPipeline, calls: list[list[Request]]) -> None:
    for requests in calls:
        sample_batch(pipeline, requests)


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
    requests = [
        Request(f"a red {noun} on the beach", seed, num_inference_steps=steps)
        for seed, noun in enumerate(("robot", "car", "teapot", "dog"))
    ]
    outputs = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if device.type == "cpu" and dtype == torch.float16:
            continue
        engine = Engine(model_directory("toyworld"), device=str(device), dtype=dtype)
        outputs[dtype] = engine.sample(requests)
    reference = outputs.pop(torch.float32)
    return {str(dtype): _compare(reference, images) for dtype, images in outputs.items()}


def _compare(reference: list[Any], outputs: list[Any]) -> dict[str, float]:
    pairs = list(zip(reference, outputs, strict=True))
    latents = [(a.latents - b.latents).square().mean().sqrt() for a, b in pairs]
    levels = [
        np.abs(np.asarray(a.image, dtype=float) - np.asarray(b.image, dtype=float)).mean()
        for a, b in pairs
    ]
    return {
        "latents_rms": round(float(torch.stack(latents).mean()), 5),
        "pixel_levels_mean": round(float(np.mean(levels)), 3),
    }
