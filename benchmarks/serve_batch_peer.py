"""The peer `serve_batch` of theme `serve`: diffusers' pipeline behind Ray Serve's own batching.

As Ray's documentation has it, with what one would add: requests of a batch that can share a call
of the pipeline do, the event loop is not held up by sampling, adapters are fused into a pipeline a
subject, and weights lie in memory as convolutions like them.
"""

import asyncio
import base64
import io
from typing import Any

import ray.serve
import torch
from starlette.requests import Request

from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.model_directory import model_directory


class BatchedPipeline:
    def __init__(self, bundles: dict[str, str]) -> None:
        torch.set_num_threads(1)
        self._pipelines = {
            name: load_pipeline(model_directory(folder)) for name, folder in bundles.items()
        }
        for pipeline in self._pipelines.values():
            pipeline.unet.to(memory_format=torch.channels_last)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"data": [{"b64_json": await self.generate(await request.json())}]}

    @ray.serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)  # type: ignore[untyped-decorator]
    async def generate(self, bodies: list[dict[str, Any]]) -> list[str]:
        return await asyncio.to_thread(self._generate_batch, bodies)

    def _generate_batch(self, bodies: list[dict[str, Any]]) -> list[str]:
        indices_by_settings: dict[tuple[Any, ...], list[int]] = {}
        for k, request_body in enumerate(bodies):
            call_settings = (
                request_body["model"],
                request_body["num_inference_steps"],
                request_body["guidance_scale"],
            )
            indices_by_settings.setdefault(call_settings, []).append(k)
        encoded_images = [""] * len(bodies)
        for (model, steps, guidance), request_indices in indices_by_settings.items():
            images = self._pipelines[model](
                [bodies[k]["prompt"] for k in request_indices],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[
                    torch.Generator().manual_seed(bodies[k]["seed"]) for k in request_indices
                ],
            ).images
            for k, image in zip(request_indices, images, strict=True):
                png_buffer = io.BytesIO()
                image.save(png_buffer, "PNG")
                encoded_images[k] = base64.b64encode(png_buffer.getvalue()).decode()
        return encoded_images


def build(bundles: dict[str, str], replicas: int) -> ray.serve.Application:
    """bundles: folder by model name."""
    deployment = ray.serve.deployment(
        BatchedPipeline,
        num_replicas=replicas,
        max_ongoing_requests=32,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
    )
    return deployment.bind(bundles)
