"""Generates chunks of class images and commits them."""

import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from dreambooth_ray.data.image_hash import compute_fingerprint, is_blank_image
from dreambooth_ray.data.image_shapes import ImageShape
from dreambooth_ray.data.prior_set import POSTERIOR, PriorImageRecord
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_mirror import locate_model
from dreambooth_ray.models.precision import resolve_device, resolve_sampling_dtype
from dreambooth_ray.models.vae_posterior import encode_posterior
from dreambooth_ray.priors.prior_spec import PriorSpec
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request, png_receipt
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store, use_storage_options


class PriorWorker:
    """One engine, and the set it generates for."""

    def __init__(
        self,
        directory: str,
        set_uri: str,
        spec: PriorSpec,
        gpu: bool,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        use_storage_options(set_uri, storage_options or {})
        torch.set_num_threads(1)
        self._components = load_components(locate_model(directory, spec.model_hash, set_uri))
        device = resolve_device("cuda" if gpu else "cpu")
        self._engine = Engine(
            self._components,
            max_batch=spec.chunk_size,
            device=str(device),
            dtype=resolve_sampling_dtype(device, self._components.family),
        )
        self._store, self._spec = Store(set_uri), spec

    def generate(
        self, number: int, image_files: list[bytes] | None = None
    ) -> list[PriorImageRecord]:
        """Generate chunk `number`, or take PNG files of its shape instead, and commit it.

        returns: its records, also where another actor has committed it first
        """
        spec = self._spec
        image_indices = list(spec.image_indices(number))
        if image_files is None:
            image_shape = spec.chunk_shape(number)
            requests = [self._build_request(i, image_shape) for i in image_indices]
            images = self._sample_prior_images(requests)
            png_infos = [png_receipt(r, model_hash=spec.model_hash) for r in requests]
        else:
            images = [Image.open(io.BytesIO(png_bytes)).convert("RGB") for png_bytes in image_files]
            image_indices, png_infos = image_indices[: len(images)], [PngInfo()] * len(images)
        image_records = [
            PriorImageRecord(i, compute_fingerprint(p), is_blank_image(p), i % len(spec.prompts))
            for i, p in zip(image_indices, images, strict=True)
        ]
        with tempfile.TemporaryDirectory(prefix="dreambooth-prior-") as temp_path:
            chunk_folder = Path(temp_path)
            for image_index, image, png_info in zip(image_indices, images, png_infos, strict=True):
                image.save(chunk_folder / paths.prior_image_file(image_index), pnginfo=png_info)
            save_file({"posterior": self._encode_posteriors(images)}, chunk_folder / POSTERIOR)
            chunk_metadata: dict[str, object] = {"records": [r.to_json() for r in image_records]}
            manifest.commit_artifact(
                self._store, paths.prior_chunk_artifact(number), chunk_folder, chunk_metadata
            )
        return image_records

    def _sample_prior_images(self, requests: list[Request]) -> list[Image.Image]:
        """All images; where memory runs out, in smaller batches from then on.

        raises: CapacityError if one image alone does not fit
        """
        while True:
            try:
                return [sample.image for sample in self._engine.sample(requests)]
            except CapacityError:
                if self._engine.max_batch == 1:
                    raise
                self._engine.max_batch //= 2

    def _encode_posteriors(self, images: list[Image.Image]) -> torch.Tensor:
        posteriors = [encode_posterior(self._components, image, flip=True) for image in images]
        return torch.stack(posteriors).contiguous()

    def _build_request(self, index: int, shape: ImageShape) -> Request:
        spec = self._spec
        return Request(
            prompt=spec.prompts[index % len(spec.prompts)],
            seed=spec.image_seed(index),
            params=spec.params,
            width_px=shape.width,
            height_px=shape.height,
        )
