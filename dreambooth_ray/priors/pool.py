"""Ray actors that draw the missing class images into storage."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch

from dreambooth_ray.diffusion.engine import Engine
from dreambooth_ray.diffusion.request import Request, png_receipt
from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.priors.plan import Chunk, PriorSpec, missing_chunks
from dreambooth_ray.storage import layout
from dreambooth_ray.storage.store import Store

ACTOR_RESTARTS = 3


class Painter:
    """Draws chunks of one set; lives in a Ray actor."""

    def __init__(self, directory: str, set_uri: str, spec: PriorSpec, gpu: bool) -> None:
        torch.set_num_threads(1)
        device = "cuda" if gpu else "cpu"
        self._engine = Engine(Path(directory), max_batch=spec.chunk_size, device=device)
        self._store, self._spec = Store(set_uri), spec

    def paint(self, chunk: Chunk) -> int:
        """Draw one chunk, store each image that is not there; returns how many it holds."""
        spec = self._spec
        requests = [
            Request(
                prompt=spec.prompt,
                seed=spec.image_seed(i),
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                width_px=spec.size_px,
                height_px=spec.size_px,
            )
            for i in chunk
        ]
        drawn = self._engine.draw(requests)
        for index, request, one in zip(chunk, requests, drawn, strict=True):
            data = io.BytesIO()
            one.image.save(data, "PNG", pnginfo=png_receipt(request, model_hash=spec.model_hash))
            self._store.create(layout.prior_image(index), data.getvalue())
        return len(chunk)


def make_priors(
    spec: PriorSpec,
    count: int,
    directory: Path,
    store: Store,
    actors: int,
    gpu: bool,
    on_progress: Callable[[int, int], None],
) -> Store:
    """Draw what is missing of the first `count` images of a set; returns the set's store.

    on_progress(done, total) is called in images. An actor that dies is started again and
    its chunk drawn again: the picture is the same, and an image that is there is kept.
    raises: DreamBoothError if an actor keeps failing
    """
    set_store = store.sub(layout.prior_set(spec.digest))
    todo = missing_chunks(count, spec.chunk_size, set(set_store.names()))
    if not todo:
        return set_store
    set_store.write("set.json", json.dumps(asdict(spec), indent=1).encode())
    done = count - sum(len(c) for c in todo)
    on_progress(max(done, 0), count)
    remote = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0)(Painter)
    options = remote.options(max_restarts=ACTOR_RESTARTS, max_task_retries=ACTOR_RESTARTS)
    crew = [
        options.remote(str(directory), set_store.uri, spec, gpu)
        for _ in range(min(actors, len(todo)))
    ]
    try:
        _feed(crew, todo, lambda n: on_progress(min(done + n, count), count))
    finally:
        for actor in crew:
            ray.kill(actor)
    return set_store


def _feed(crew: list[Any], todo: list[Chunk], on_drawn: Callable[[int], None]) -> None:
    """Give each actor one chunk at a time until none is left."""
    queue, drawn = list(todo), 0
    busy = {actor.paint.remote(queue.pop(0)): actor for actor in crew}
    while busy:
        ready, _ = ray.wait(list(busy), num_returns=1)
        actor = busy.pop(ready[0])
        try:
            drawn += ray.get(ready[0])
        except ray.exceptions.RayError as error:
            raise DreamBoothError(
                f"a class-image actor failed {ACTOR_RESTARTS + 1} times: {error}; "
                "lower prior.actors or prior.batch_size if memory ran out"
            ) from error
        on_drawn(drawn)
        if queue:
            busy[actor.paint.remote(queue.pop(0))] = actor
