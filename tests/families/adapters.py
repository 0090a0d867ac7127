"""Adapters that show, as a LoRA run of a family would have learnt them."""

from pathlib import Path

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models import lora
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.trainable_params import apply_train_method
from tests.families.golden_values import fill_lora


def write_adapter(directory: Path, folder: Path) -> Path:
    """Of the denoiser and of the text encoders that can be trained, in peft's format."""
    trains_text = bool(find_family(directory).trainable_text_encoders)
    settings = ["train.method=lora", "train.lora.rank=2", "prior.count=0"]
    settings.append(f"train.text_encoder={str(trains_text).lower()}")
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", settings)
    parts = load_components(directory)
    apply_train_method(fill_model_defaults(config, find_family(directory)), parts)
    for name, network in parts.networks.items():
        if lora.has_adapters(network):
            fill_lora(name, network)
            lora.save_adapters(network, folder / name)
    return folder
