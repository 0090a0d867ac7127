"""Subjects to serve, made without training."""

import tempfile
from pathlib import Path

import torch

from benchmarks.callers import SUBJECTS
from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.models import lora
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory, model_hash
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.catalog import publish_run
from dreambooth_ray.storage.store import Store


def make_subjects(storage: str, model: str) -> dict[str, str]:
    """Adapters of random weights, committed as runs would commit them; folders by name.

    storage: URI
    """
    base_directory, folders, settings = model_directory(model), {}, LoraConfig()
    for k, run_id in enumerate(SUBJECTS):
        parts = load_components(base_directory)
        lora.inject_adapters(parts.denoiser, settings, parts.family.lora_targets, seed=k)
        generator = torch.Generator().manual_seed(k)
        for name, weight in parts.denoiser.named_parameters():
            if "lora_B" in name:
                weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
        with tempfile.TemporaryDirectory() as folder:
            name = parts.family.denoiser.name
            lora.save_adapters(parts.denoiser, Path(folder) / paths.ADAPTER / name)
            metadata: dict[str, object] = {
                "kind": "adapter",
                "base_model": model,
                "base_hash": model_hash(base_directory),
            }
            store = Store(storage).sub(paths.run(run_id))
            manifest.publish_folder(store, paths.BUNDLE, Path(folder), metadata)
            publish_run(store)
        folders[run_id] = f"{storage}/{paths.run(run_id)}/{paths.BUNDLE}"
    return folders
