"""Ray actors that draw the images of an evaluation and commit them, chunk by chunk."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from PIL import Image
from ray.util import ActorPool
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.evaluation.encoders import load_encoder
from dreambooth_ray.evaluation.protocol import Encoders, EvaluationPrompt, Protocol, Spec, chunks
from dreambooth_ray.evaluation.ray_actor import ACTOR_RESTARTS, actor_of
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request, png_receipt
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store

_VECTORS = "vectors.safetensors"


def chunk_name(index: int) -> str:
    """Artifact of a chunk in the evaluation's folder."""
    return f"chunk-{index:05d}"


def committed_chunks(store: Store) -> set[int]:
    """Chunks that are there."""
    names = (n for n in store.names() if n.startswith("chunk-") and n.endswith(".json"))
    return {int(n.removeprefix("chunk-").removesuffix(".json")) for n in names}


class SampleActor:
    """Draws chunks of one evaluation and reads them with its networks; lives in a Ray actor."""

    def __init__(
        self, directory: str, store_uri: str, spec: Spec, asked: list[EvaluationPrompt], gpu: bool
    ) -> None:
        torch.set_num_threads(1)
        self._device = "cuda" if gpu else "cpu"
        self._directory, self._spec, self._asked = Path(directory), spec, asked
        self._store = Store(store_uri)
        self._engine = Engine(self._directory, device=self._device)
        uris = sorted(set(encoder_uris(spec.protocol.encoders).values()))
        self._encoders = [load_encoder(uri, self._device) for uri in uris]

    def generate_samples(self, chunk: int) -> int:
        """Draw, read and commit one chunk; returns how many images it holds."""
        members = chunks(len(self._asked))[chunk]
        spec = self._spec
        requests = [as_request(self._asked[i], spec.protocol, spec.size_px) for i in members]
        images = [drawn.image for drawn in self._engine.draw(requests)]
        vectors = {e.uri: e.embed_images(images).contiguous() for e in self._encoders}
        with tempfile.TemporaryDirectory(prefix="dreambooth-evaluation-") as folder:
            for i, request, image in zip(members, requests, images, strict=True):
                receipt = png_receipt(request, model_hash=self._spec.model_hash)
                image.save(Path(folder) / image_name(i), pnginfo=receipt)
            save_file(vectors, Path(folder) / _VECTORS)
            about: dict[str, object] = {"kind": "evaluation chunk", "first": members[0]}
            manifest.commit(self._store, chunk_name(chunk), Path(folder), about)
        return len(members)


def as_request(question: EvaluationPrompt, protocol: Protocol, size_px: int | None) -> Request:
    """How the engine is asked for one question's image."""
    return Request(
        question.prompt,
        question.seed,
        num_inference_steps=protocol.num_inference_steps,
        guidance_scale=protocol.guidance_scale,
        solver=protocol.solver,
        width_px=size_px,
        height_px=size_px,
    )


def image_name(index: int) -> str:
    """File of one question's image in its chunk."""
    return f"{index:06d}.png"


def encoder_uris(encoders: Encoders) -> dict[str, str]:
    """URI by use."""
    return {str(use): str(uri) for use, uri in encoders.model_dump().items()}


def generate_samples(
    spec: Spec,
    asked: list[EvaluationPrompt],
    directory: Path,
    store: Store,
    actors: int,
    gpu: bool,
    on_progress: Callable[[int, int], None],
) -> None:
    """Commit every chunk that is missing; on_progress(done, total) is called in images.

    An actor that dies is started again and its chunk drawn again, to the same images.
    raises: DreamBoothError if an actor keeps failing
    """
    here, parts = committed_chunks(store), chunks(len(asked))
    todo = [k for k in range(len(parts)) if k not in here]
    done = sum(len(parts[k]) for k in here)
    on_progress(done, len(asked))
    if not todo:
        return
    store.write("spec.json", json.dumps(spec.as_json(), indent=1).encode())
    sitter = actor_of(SampleActor, gpu)
    crew: list[Any] = [
        sitter.remote(str(directory), store.uri, spec, asked, gpu)
        for _ in range(min(actors, len(todo)))
    ]
    try:
        for count in ActorPool(crew).map_unordered(lambda actor, k: actor.sit.remote(k), todo):
            done += count
            on_progress(done, len(asked))
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", error)
        raise cause if isinstance(cause, DreamBoothError) else error from None
    except ray.exceptions.RayError as error:
        raise DreamBoothError(
            f"an evaluation actor failed {ACTOR_RESTARTS + 1} times: {error}; run again to go on, "
            "with fewer --actors if memory ran out"
        ) from error
    finally:
        for actor in crew:
            ray.kill(actor)


def collect(store: Store, count: int, local: Path) -> tuple[list[Image.Image], dict[str, Tensor]]:
    """All images in the order of their questions, and their vectors by encoder URI, verified.

    raises: CheckpointError naming the first chunk that is missing or damaged
    """
    images: list[Image.Image] = []
    parts: dict[str, list[Tensor]] = {}
    for chunk, members in enumerate(chunks(count)):
        folder = local / str(chunk)
        manifest.fetch(store, chunk_name(chunk), folder)
        for i in members:
            with Image.open(folder / image_name(i)) as image:
                images.append(image.convert("RGB"))
        for uri, vectors in load_file(folder / _VECTORS).items():
            parts.setdefault(uri, []).append(vectors)
    return images, {uri: torch.cat(rows) for uri, rows in parts.items()}
