"""The peer `fastapi` of theme `serve`: a FastAPI server around the diffusers pipeline.

As diffusers' documentation of servers has it: pipelines are loaded once, a request samples in a
thread so that the event loop goes on, with a scheduler of its own. uvicorn keeps as many
processes as we have replicas, one thread each; a process samples one image at a time, since two
would share its core. Adapters are fused into a pipeline a subject, with weights in memory as
convolutions like them, as in the other peer.
"""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from fastapi import FastAPI

from benchmarks.callers import GENERATE
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.model_directory import model_directory

BUNDLES = "BENCH_BUNDLES"
_pipelines: dict[str, Any] = {}
_one_at_a_time = asyncio.Lock()


@asynccontextmanager
async def _load_pipelines(_: FastAPI) -> Any:
    torch.set_num_threads(1)
    for name, folder in json.loads(os.environ[BUNDLES]).items():
        _pipelines[name] = load_pipeline(model_directory(folder))
        _pipelines[name].unet.to(memory_format=torch.channels_last)
        _pipelines[name].set_progress_bar_config(disable=True)
    yield


app = FastAPI(lifespan=_load_pipelines)


@app.post(GENERATE)
async def generate(body: dict[str, Any]) -> dict[str, Any]:
    """One image."""
    async with _one_at_a_time:
        image_base64 = await asyncio.to_thread(_generate_image, body)
    return {"data": [{"b64_json": image_base64}]}


def _generate_image(body: dict[str, Any]) -> str:
    pipeline = _pipelines[body["model"]]
    pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config)
    image = pipeline(
        body["prompt"],
        num_inference_steps=body["num_inference_steps"],
        guidance_scale=body["guidance_scale"],
        generator=torch.Generator().manual_seed(body["seed"]),
    ).images[0]
    png_buffer = io.BytesIO()
    image.save(png_buffer, "PNG")
    return base64.b64encode(png_buffer.getvalue()).decode()


@contextmanager
def serve_pipelines(bundles: dict[str, str], port: int, processes: int) -> Iterator[None]:
    """uvicorn, for the length of the block. bundles: folder by model name"""
    command = [
        sys.executable, "-m", "uvicorn", f"{__name__}:app", "--host", "127.0.0.1",
        "--port", str(port), "--workers", str(processes), "--log-level", "error",
    ]  # fmt: skip
    python_path = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    environment = {BUNDLES: json.dumps(bundles), "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    server_process = subprocess.Popen(command, env=os.environ | environment)
    try:
        yield
    finally:
        child_processes = psutil.Process(server_process.pid).children(recursive=True)
        server_process.terminate()
        server_process.wait(timeout=60)
        for child_process in psutil.wait_procs(child_processes, timeout=10)[1]:
            child_process.kill()
