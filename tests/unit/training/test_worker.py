import gc
from pathlib import Path

import pytest
import ray.train.torch
import torch
from transformers import Qwen3ForCausalLM

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.training import worker
from dreambooth_ray.training.worker_job import WorkerJob
from tests.families.tiny_models import build_tiny


def list_language_models() -> list[Qwen3ForCausalLM]:
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, Qwen3ForCausalLM)]


def test_a_language_model_is_gone_once_captions_are_encoded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    directory = build_tiny("flux2-klein", tmp_path / "model")
    recipe = f"subject: {{photos: '{photos}', class_noun: robot}}"
    settings = ["train.method=lora", "train.resolution=64", "prior.count=0", "train.batch_size=1"]
    config = parse_config(recipe, "x", settings)
    config = fill_model_defaults(config, find_family(directory))
    job = WorkerJob("", str(tmp_path / "run"), str(directory))
    # Those that other tests of this process hold, which so keep their ids.
    held = list_language_models()
    module, dataset, _ = worker._load_module_and_datasets(job, config, (0, 1))
    assert {id(model) for model in list_language_models()} <= {id(model) for model in held}
    loss, _ = module.compute_loss(dataset.make_batch(0))
    assert loss.isfinite()
