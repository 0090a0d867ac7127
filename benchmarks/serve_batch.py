"""The peer `serve_batch` of theme `serve`: diffusers' pipeline behind Ray Serve's own batching.

As Ray's documentation has it, with what one would add: requests of a batch that can share a call
of the pipeline do, the event loop is not held up by drawing, adapters are fused into a pipeline a
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
from dreambooth_ray.models.source import model_directory


class Batched:
    def __init__(self, bundles: dict[str, str]) -> None:
        torch.set_num_threads(1)
        self._pipelines = {
            name: load_pipeline(model_directory(folder)) for name, folder in bundles.items()
        }
        for pipeline in self._pipelines.values():
            pipeline.unet.to(memory_format=torch.channels_last)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"data": [{"b64_json": await self.draw(await request.json())}]}

    @ray.serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)  # type: ignore[untyped-decorator]
    async def draw(self, asked: list[dict[str, Any]]) -> list[str]:
        return await asyncio.to_thread(self._draw, asked)

    def _draw(self, asked: list[dict[str, Any]]) -> list[str]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for k, body in enumerate(asked):
            shared = body["model"], body["num_inference_steps"], body["guidance_scale"]
            groups.setdefault(shared, []).append(k)
        answers = [""] * len(asked)
        for (model, steps, guidance), members in groups.items():
            images = self._pipelines[model](
                [asked[k]["prompt"] for k in members],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(asked[k]["seed"]) for k in members],
            ).images
            for k, image in zip(members, images, strict=True):
                out = io.BytesIO()
                image.save(out, "PNG")
                answers[k] = base64.b64encode(out.getvalue()).decode()
        return answers


def build(bundles: dict[str, str], replicas: int) -> ray.serve.Application:
    """bundles: folder by the name it is asked for with."""
    deployment = ray.serve.deployment(
        Batched,
        num_replicas=replicas,
        max_ongoing_requests=32,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
    )
    return deployment.bind(bundles)
