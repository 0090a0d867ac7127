"""Theme `fullsize`: Stable Diffusion 1.5's exact architecture with random weights, 512x512.

One LoRA step and one sampling step, ours and plain diffusers', each in a process of its own
that reports its time and the peak of its memory. The architecture is that of
runwayml/stable-diffusion-v1-5's configuration files; a smoke profile has an eighth of its
channels and a quarter of the pixels. Both sides have a thread for each core.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from benchmarks.measure import compute_quantiles
from benchmarks.random_models import SD15, ModelSize, make_random_components
from benchmarks.sample_theme import load_diffusers_pipeline
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.memory.out_of_memory import is_out_of_memory

TASKS = ("sample ours", "sample theirs", "lora ours", "lora theirs")
LIMIT_S = 900


def write_model(folder: Path, size: ModelSize) -> None:
    """The parts of a size, as a pipeline's directory."""
    components = make_random_components(size, torch.device("cpu"))
    StableDiffusionPipeline(
        vae=components.vae, unet=components.unet, text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Each task in a fresh process; `setting.model` is passed over: the size is the point."""
    model_size = replace(SD15, divisor=setting.pick(8, 1), side_px=setting.pick(256, 512))
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        model_folder = Path(temp_folder) / "model"
        write_model(model_folder, model_size)
        results_by_task = {task: _run_in_process(task, model_folder) for task in TASKS}
    cases = [_make_case(kind, results_by_task) for kind in ("sample", "lora")]
    return {"cases": cases, "configuration": {
        "model": "Stable Diffusion 1.5, random weights", "channels_divided_by": model_size.divisor,
        "threads": os.cpu_count(), "side_px": model_size.side_px, "dtype": "float32",
        "sampling": "one DDIM step with guidance, and decoding",
        "lora": "rank 8 on attention; two images; text encoder frozen",
    }}  # fmt: skip


def _make_case(kind: str, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ours, theirs = results[f"{kind} ours"], results[f"{kind} theirs"]
    case: dict[str, Any] = {"case": f"one {kind} step", "peer": "diffusers", "pairs": 1}
    for side_name, side_result in (("ours", ours), ("theirs", theirs)):
        if "out_of_memory" in side_result:
            return {**case, "out_of_memory": side_name, "error": side_result["out_of_memory"]}
    return {
        **case, "unit": "s and bytes", "ours": ours, "theirs": theirs,
        "ratio": compute_quantiles([theirs["step_s"] / ours["step_s"]]),
        "memory_ratio": round(theirs["peak_bytes"] / ours["peak_bytes"], 4),
        "bar": 1.0, "bar_is_of": "memory_ratio",
        "reached": ours["peak_bytes"] <= theirs["peak_bytes"],
    }  # fmt: skip


def _run_in_process(task: str, model: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fullsize_theme", task, str(model)]
    completed_process = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if completed_process.returncode == -9:
        return {"out_of_memory": "killed by the system"}
    if completed_process.returncode:
        raise RuntimeError(f"{task} failed: {completed_process.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(completed_process.stdout.splitlines()[-1])
    return record


def _time_our_sampling(model: Path) -> float:
    from dreambooth_ray.sampling.engine import Engine  # noqa: PLC0415  each task loads its own
    from dreambooth_ray.sampling.request import Request  # noqa: PLC0415

    engine = Engine(model)
    return _time_once(lambda: engine.sample([Request("a robot", 0, num_inference_steps=1)]))


def _time_their_sampling(model: Path) -> float:
    pipeline = load_diffusers_pipeline(str(model))
    return _time_once(lambda: pipeline("a robot", num_inference_steps=1, guidance_scale=3.0))


def _time_lora_step(model: Path, ours: bool) -> float:
    from benchmarks.single_lora_step import make_our_step, make_their_step  # noqa: PLC0415

    return _time_once((make_our_step if ours else make_their_step)(model))


def _time_once(work: Any) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def main() -> None:
    """Do one task in this process; prints its time and peak memory as JSON."""
    torch.set_num_threads(os.cpu_count() or 1)
    task, model_folder = sys.argv[1], Path(sys.argv[2])
    try:
        if task.startswith("sample"):
            step_s = (
                _time_our_sampling(model_folder)
                if task.endswith("ours")
                else _time_their_sampling(model_folder)
            )
        else:
            step_s = _time_lora_step(model_folder, task.endswith("ours"))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(json.dumps({"out_of_memory": str(error)[:300]}))
        return
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_s": round(step_s, 3), "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main()
