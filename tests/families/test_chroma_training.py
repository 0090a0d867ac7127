"""a, of Chroma, for which diffusers has no training script: FLUX.1's arithmetic with its own parts.

That is `examples/dreambooth/train_dreambooth_lora_flux.py` as far as a step goes, over
ChromaPipeline and ChromaTransformer2DModel, with masks that mask.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaPipeline
from peft import LoraConfig
from torch import Tensor

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.families.flux1 import LORA_TARGETS
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings
from dreambooth_ray.training.module import DreamBoothModule
from tests.families.golden_cases import CLASS_PROMPT, INSTANCE_PROMPT, PRIOR_LOSS_WEIGHT, RANK
from tests.families.golden_values import fill_lora
from tests.families.reference_pipelines import encode_for_chroma

SIDE = 8  # of latents


@pytest.fixture
def directory(tiny_directories: dict[str, Path]) -> Path:
    return tiny_directories["chroma"]


def make_batch(parts: Any) -> Batch:
    """A photograph and a class image, whose captions are of different lengths."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, SIDE, SIDE, generator=generator)
    captions = [INSTANCE_PROMPT, CLASS_PROMPT]
    _, conditioning = CaptionEmbeddings(parts, captions).look_up(captions)
    frames = torch.tensor([ImageFrame.of_whole_image(64, 64)] * 2)
    return Batch(
        latents=latents, noise=noise, times=torch.tensor([0.3, 0.8]), tokens=None,
        conditioning=conditioning, frames=frames, num_photographs=1, step=0,
    )  # fmt: skip


def compute_reference(directory: Path, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the script's arithmetic."""
    pipeline = ChromaPipeline.from_pretrained(directory, torch_dtype=torch.float32)
    transformer = pipeline.transformer.requires_grad_(False)
    targets = list(LORA_TARGETS)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    fill_lora("transformer", transformer)
    told = [encode_for_chroma(pipeline, text, "") for text in (INSTANCE_PROMPT, CLASS_PROMPT)]
    hidden = torch.cat([row["prompt_embeds"] for row in told])
    mask = torch.cat([row["prompt_attention_mask"] for row in told])
    num_tokens = (SIDE // 2) ** 2
    sigmas = batch.times.view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * batch.latents + sigmas * batch.noise
    positions = pipeline._prepare_latent_image_ids(
        2, SIDE // 2, SIDE // 2, torch.device("cpu"), torch.float32
    )
    (output,) = transformer(
        hidden_states=pipeline._pack_latents(noisy, 2, 4, SIDE, SIDE),
        timestep=1000 * batch.times / 1000,
        encoder_hidden_states=hidden,
        txt_ids=torch.zeros(hidden.shape[1], 3),
        img_ids=positions,
        attention_mask=torch.cat([mask, torch.ones(2, num_tokens, dtype=torch.bool)], dim=1),
        return_dict=False,
    )
    prediction = pipeline._unpack_latents(output, 8 * SIDE, 8 * SIDE, 8)
    errors = (prediction - (batch.noise - batch.latents)) ** 2
    loss = errors[0].mean() + PRIOR_LOSS_WEIGHT * errors[1].mean()
    loss.backward()
    return loss, read_gradients(transformer)


def read_gradients(transformer: Any) -> dict[str, Tensor]:
    return {
        name: weight.grad for name, weight in transformer.named_parameters() if ".lora_" in name
    }


@pytest.mark.parametrize("checkpoints", [False, True])
def test_loss_and_gradients_are_its_relatives_script_s(directory: Path, checkpoints: bool) -> None:
    settings = [
        f"model.uri={directory}", "train.method=lora", f"train.lora.rank={RANK}",
        "train.resolution=64", f"prior.weight={PRIOR_LOSS_WEIGHT}",
        f"train.gradient_checkpointing={str(checkpoints).lower()}",
    ]  # fmt: skip
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", settings)
    config = fill_model_defaults(config, find_family(directory))
    parts = load_components(directory)
    apply_train_method(config, parts)
    fill_lora("transformer", parts.denoiser)
    batch = make_batch(parts)
    loss, _ = DreamBoothModule(config, parts).compute_loss(batch)
    loss.backward()
    expected_loss, expected = compute_reference(directory, batch)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    found = read_gradients(parts.denoiser)
    assert found.keys() == expected.keys()
    total = sum(float(gradient.norm()) ** 2 for gradient in expected.values()) ** 0.5
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * total, name
