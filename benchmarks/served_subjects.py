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
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run


def make_subjects(storage: str, model: str) -> dict[str, str]:
    """Adapters of random weights, committed as runs would commit them; folders by name.

    storage: URI
    """
    base_directory, bundle_folders, lora_config = model_directory(model), {}, LoraConfig()
    for k, run_id in enumerate(SUBJECTS):
        components = load_components(base_directory)
        lora.inject_adapters(
            components.denoiser, lora_config, components.family.lora_targets, seed=k
        )
        generator = torch.Generator().manual_seed(k)
        for name, parameter in components.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        with tempfile.TemporaryDirectory() as temp_folder:
            name = components.family.denoiser.name
            lora.save_adapters(components.denoiser, Path(temp_folder) / paths.ADAPTER / name)
            bundle_metadata: dict[str, object] = {
                "kind": "adapter",
                "base_model": model,
                "base_hash": model_hash(base_directory),
            }
            run_store = Store(storage).sub(paths.run(run_id))
            manifest.upload_folder_with_manifest(
                run_store, paths.BUNDLE, Path(temp_folder), bundle_metadata
            )
            publish_run(run_store)
        bundle_folders[run_id] = f"{storage}/{paths.run(run_id)}/{paths.BUNDLE}"
    return bundle_folders
