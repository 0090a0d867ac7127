"""Subjects to serve, made without training."""

import tempfile
from pathlib import Path

import torch

from benchmarks.callers import SUBJECTS
from dreambooth_ray.config.training import LoraConfig
from dreambooth_ray.diffusion import adapters
from dreambooth_ray.diffusion.components import load_components
from dreambooth_ray.diffusion.model_files import model_directory, model_hash
from dreambooth_ray.storage import layout, manifest
from dreambooth_ray.storage.store import Store


def make_subjects(storage: Path, model: str) -> dict[str, str]:
    """Adapters of random weights, committed as runs would commit them; folders by name."""
    base, found, settings = model_directory(model), {}, LoraConfig()
    for k, run_id in enumerate(SUBJECTS):
        parts = load_components(base)
        adapters.inject(parts.unet, settings, settings.target_modules, seed=k)
        generator = torch.Generator().manual_seed(k)
        for name, weight in parts.unet.named_parameters():
            if "lora_B" in name:
                weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
        with tempfile.TemporaryDirectory() as folder:
            adapters.save(parts.unet, Path(folder) / layout.ADAPTER / "unet")
            about: dict[str, object] = {
                "kind": "adapter",
                "base_model": model,
                "base_hash": model_hash(base),
            }
            store = Store(str(storage)).sub(layout.run(run_id))
            manifest.publish(store, layout.BUNDLE, Path(folder), about)
        found[run_id] = str(storage / layout.run(run_id) / layout.BUNDLE)
    return found
