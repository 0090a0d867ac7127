"""Ray actors that generate the images of an evaluation and commit them, chunk by chunk."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_ray.actor_pool import ActorPool, PoolWords
from dreambooth_ray.config.machines import ClusterConfig, CountRange
from dreambooth_ray.evaluation.actor_resources import build_actor_class
from dreambooth_ray.evaluation.encoders import load_image_encoder
from dreambooth_ray.evaluation.protocol import (
    EncoderUris,
    EvaluationPrompt,
    EvaluationProtocol,
    EvaluationSpec,
    split_image_chunks,
)
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request, png_receipt
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store

_VECTORS = "vectors.safetensors"
_WORDS = PoolWords(
    "evaluation",
    when_memory_runs_out="run again with fewer --actors",
    when_room_is_short="run again with fewer --actors, or where there is more room",
)


def chunk_name(index: int) -> str:
    """Artifact of a chunk in the evaluation's folder."""
    return f"chunk-{index:05d}"


def list_committed_chunks(store: Store) -> set[int]:
    """Indices of the committed chunks."""
    chunk_metadata_names = (
        n for n in store.names() if n.startswith("chunk-") and n.endswith(".json")
    )
    return {int(n.removeprefix("chunk-").removesuffix(".json")) for n in chunk_metadata_names}


class SampleActor:
    """Generates and embeds chunks of one evaluation's images; lives in a Ray actor."""

    def __init__(
        self,
        directory: str,
        store_uri: str,
        spec: EvaluationSpec,
        prompts: list[EvaluationPrompt],
        gpu: bool,
    ) -> None:
        torch.set_num_threads(1)
        self._device = "cuda" if gpu else "cpu"
        self._directory, self._spec, self._prompts = Path(directory), spec, prompts
        self._store = Store(store_uri)

    def ready(self) -> bool:
        """Load model and encoders; True once they are."""
        self._engine = Engine(self._directory, device=self._device)
        sorted_encoder_uris = sorted(set(encoder_uris(self._spec.protocol.encoders).values()))
        self._encoders = [load_image_encoder(uri, self._device) for uri in sorted_encoder_uris]
        return True

    def generate_samples(self, chunk: int) -> int:
        """Generate, embed and commit one chunk; returns how many images it holds."""
        image_indices = split_image_chunks(len(self._prompts))[chunk]
        evaluation_spec = self._spec
        sampling_requests = [
            build_sampling_request(
                self._prompts[image_index], evaluation_spec.protocol, evaluation_spec.size_px
            )
            for image_index in image_indices
        ]
        sample_outputs = self._engine.sample(sampling_requests)
        images = [sample.image for sample in sample_outputs]
        vectors_by_encoder = {e.uri: e.embed_images(images).contiguous() for e in self._encoders}
        with tempfile.TemporaryDirectory(prefix="dreambooth-evaluation-") as folder:
            for image_index, sample in zip(image_indices, sample_outputs, strict=True):
                png_metadata = png_receipt(sample.request, model_hash=self._spec.model_hash)
                sample.image.save(Path(folder) / image_name(image_index), pnginfo=png_metadata)
            save_file(vectors_by_encoder, Path(folder) / _VECTORS)
            chunk_metadata: dict[str, object] = {
                "kind": "evaluation chunk",
                "first": image_indices[0],
            }
            manifest.commit_artifact(self._store, chunk_name(chunk), Path(folder), chunk_metadata)
        return len(image_indices)


def build_sampling_request(
    prompt: EvaluationPrompt, protocol: EvaluationProtocol, size_px: int | None
) -> Request:
    """The engine's request for one prompt of an evaluation."""
    return Request(
        prompt.prompt,
        prompt.seed,
        params=protocol.sampling_params,
        width_px=size_px,
        height_px=size_px,
    )


def image_name(index: int) -> str:
    """File of one image in its chunk."""
    return f"{index:06d}.png"


def encoder_uris(encoders: EncoderUris) -> dict[str, str]:
    """URI by use."""
    return {str(use): str(uri) for use, uri in encoders.model_dump().items()}


def generate_samples(
    spec: EvaluationSpec,
    prompts: list[EvaluationPrompt],
    directory: Path,
    store: Store,
    actors: int,
    gpu: bool,
    on_progress: Callable[[int, int], None],
) -> None:
    """Commit every chunk that is missing; on_progress(done, total) is called in images.

    An actor that dies is replaced and its chunk generated again, with the same images.
    raises: DreamBoothError if chunks keep failing, CapacityError if no actor starts in time
    """
    committed_chunk_indices, chunk_image_indices = (
        list_committed_chunks(store),
        split_image_chunks(len(prompts)),
    )
    missing_chunks = [
        k for k in range(len(chunk_image_indices)) if k not in committed_chunk_indices
    ]
    num_images_done = sum(len(chunk_image_indices[k]) for k in committed_chunk_indices)
    on_progress(num_images_done, len(prompts))
    if not missing_chunks:
        return
    store.write("spec.json", json.dumps(spec.as_json(), indent=1).encode())
    actor_class = build_actor_class(SampleActor, gpu, max_restarts=0)

    def create_actor() -> Any:
        return actor_class.remote(str(directory), store.uri, spec, prompts, gpu)

    def submit_chunk(actor: Any, chunk_index: int) -> Any:
        return actor.generate_samples.remote(chunk_index)

    actor_count_range = CountRange(min=1, max=actors)
    actor_pool = ActorPool[int](
        create_actor, actor_count_range, len(missing_chunks), ClusterConfig().wait_s, _WORDS
    )
    try:
        while missing_chunks:
            for chunk_index, num_images in actor_pool.process_chunks(missing_chunks, submit_chunk):
                if chunk_index in missing_chunks:  # a slow one may come twice
                    missing_chunks.remove(chunk_index)
                    num_images_done += num_images
                    on_progress(num_images_done, len(prompts))
    finally:
        actor_pool.close()


def collect_samples(
    store: Store, count: int, local: Path
) -> tuple[list[Image.Image], dict[str, Tensor]]:
    """All images in the order of their prompts, and their vectors by encoder URI, verified.

    raises: CheckpointError naming the first chunk that is missing or damaged
    """
    images: list[Image.Image] = []
    vector_chunks: dict[str, list[Tensor]] = {}
    for chunk_index, image_indices in enumerate(split_image_chunks(count)):
        chunk_folder = local / str(chunk_index)
        manifest.download_artifact(store, chunk_name(chunk_index), chunk_folder)
        for image_index in image_indices:
            with Image.open(chunk_folder / image_name(image_index)) as image:
                images.append(image.convert("RGB"))
        for encoder_uri, chunk_vectors in load_file(chunk_folder / _VECTORS).items():
            vector_chunks.setdefault(encoder_uri, []).append(chunk_vectors)
    return images, {
        encoder_uri: torch.cat(vector_batches)
        for encoder_uri, vector_batches in vector_chunks.items()
    }
