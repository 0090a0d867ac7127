"""a. Loss and gradients are those of diffusers' own training scripts, on the same inputs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models import lora
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.objective.loss import mean_instance_and_prior_errors, prior_preserving_loss
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings
from dreambooth_ray.training.module import DreamBoothModule
from tests.families.golden_cases import (
    CLASS_PROMPT,
    GOLDEN_FAMILIES,
    INSTANCE_PROMPT,
    PRIOR_LOSS_WEIGHT,
    RANK,
)
from tests.families.golden_values import ROUNDING, GoldenStep, fill_lora, load_golden
from tests.families.proven_families import PROVEN_MODELS, ProvenModel
from tests.families.tiny_models import change_json

CASES = [
    (name, golden, case)
    for name, model in PROVEN_MODELS.items()
    for golden in model.golden
    for case in GOLDEN_FAMILIES[golden].cases
    if case not in model.left_out
]
SIDE_PX = 32
# Arguments of the scripts, and our keys for them.
_KEYS = {"--snr_gamma": "loss.min_snr_gamma", "--weighting_scheme": "loss.weighting"}
_TIME_DENSITIES = ("logit_normal", "mode")


def configure(directory: Path, golden: str, case: str) -> Config:
    arguments = GOLDEN_FAMILIES[golden].all_arguments(case)
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    is_lora = any(a.startswith("--rank") for a in arguments)
    overrides = [
        f"model.uri={directory}",
        f"train.method={'lora' if is_lora else 'full'}",
        f"train.lora.rank={RANK}",
        f"train.text_encoder={str('--train_text_encoder' in arguments).lower()}",
        f"train.resolution={SIDE_PX}",
        "train.steps=2",
        f"prior.weight={PRIOR_LOSS_WEIGHT}",
    ]
    for argument, key in _KEYS.items():
        if argument in given:
            is_density = given[argument] in _TIME_DENSITIES
            overrides.append(f"{'loss.timesteps' if is_density else key}={given[argument]}")
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)
    return fill_model_defaults(config, find_family(directory))


def load_trained(config: Config, directory: Path) -> Components:
    parts = load_components(directory)
    apply_train_method(config, parts)
    for name, network in parts.networks.items():
        if lora.has_adapters(network):
            fill_lora(name, network)
    return parts


def make_batch(parts: Components, step: GoldenStep) -> Batch:
    """The script's own draws, under our captions."""
    tensors, num_rows = step.tensors, len(step.tensors["latents"])
    num_class = 0 if step.prior_loss is None else num_rows // 2
    captions = [INSTANCE_PROMPT] * (num_rows - num_class) + [CLASS_PROMPT] * num_class
    tokens, conditioning = CaptionEmbeddings(parts, captions).look_up(captions)
    whole = torch.tensor([ImageFrame.of_whole_image(SIDE_PX, SIDE_PX)] * num_rows)
    times = tensors["sigmas"].flatten() if "sigmas" in tensors else tensors["timesteps"]
    return Batch(
        latents=tensors["latents"],
        noise=tensors["noise"],
        times=times,
        tokens=tokens,
        conditioning=conditioning,
        frames=tensors["input.time_ids"].long() if "input.time_ids" in tensors else whole,
        num_photographs=num_rows - num_class,
        step=0,
    )


@pytest.fixture
def directory(
    tiny_directories: dict[str, Path], tmp_path: Path, name: str, golden: str, case: str
) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_directories[name], folder)
    changes = dict(GOLDEN_FAMILIES[golden].cases[case].changes)
    change_json(folder / "scheduler" / "scheduler_config.json", changes)
    return folder


@pytest.mark.parametrize(("name", "golden", "case"), CASES)
def test_loss_and_gradients_are_the_scripts_own(
    directory: Path, name: str, golden: str, case: str
) -> None:
    config = configure(directory, golden, case)
    parts = load_trained(config, directory)
    module = DreamBoothModule(config, parts)
    model = PROVEN_MODELS[name]
    optimizer = make_text_optimizer(model, module)
    for step in load_golden(golden)[case].steps:
        module.zero_grad()
        batch = make_batch(parts, step)
        check_inputs(model, parts, module, batch, step)
        if case in model.other_weights:
            loss, losses = weigh_as_script(config, parts, module, batch, step)
        else:
            loss, losses = module.compute_loss(batch)
        assert loss.item() == pytest.approx(step.loss, rel=1e-5)
        if step.prior_loss is not None:
            assert losses[1].item() == pytest.approx(step.prior_loss, rel=1e-5)
        loss.backward()
        check_gradients(module, step)
        if optimizer is not None:
            optimizer.step()


def make_text_optimizer(model: ProvenModel, module: DreamBoothModule) -> AdamW | None:
    """The script's own, where it moves text encoders at a rate that no argument has set to 0."""
    encoders = module.text_encoders.values()
    weights = [w for encoder in encoders for w in encoder.parameters() if w.requires_grad]
    if not (weights and model.text_rate):
        return None
    return AdamW(weights, lr=model.text_rate, weight_decay=1e-3)


def check_inputs(
    model: ProvenModel,
    parts: Components,
    module: DreamBoothModule,
    batch: Batch,
    step: GoldenStep,
) -> None:
    """What is noised, what the denoiser is told, and what it is asked for."""
    tensors, functions = step.tensors, parts.functions
    check_latents(parts, tensors)
    process = functions.forward_process(parts)
    noisy = process.add_noise(batch.latents, batch.noise, batch.times)
    assert torch.allclose(noisy, tensors["noisy_latents"], atol=1e-6)
    target = process.compute_target(batch.latents, batch.noise, batch.times)
    assert model.compares_clean or torch.allclose(target, tensors["target"], atol=1e-6)
    conditioning = batch.conditioning
    if conditioning is None:
        assert batch.tokens is not None
        training = functions.text_training
        text_functions = training.text_functions(module.text_encoders)
        with torch.no_grad():
            conditioning = training.make_token_encoder(parts, text_functions)(batch.tokens)
    conditioning = functions.add_frames(conditioning, batch.frames)
    given = {
        k: v for k, name in model.inputs.items() if (v := tensors.get(f"input.{name}")) is not None
    }
    assert not model.inputs or conditioning.tensors.keys() == given.keys()
    for name, theirs in given.items():
        # Of hidden states of language models, which grow from layer to layer, other machines round
        # the last digit otherwise.
        size = max(1.0, float(theirs.abs().max()))
        assert (conditioning[name].float() - theirs.float()).abs().max() <= 1e-5 * size, name


def check_latents(parts: Components, tensors: dict[str, Tensor]) -> None:
    """Our posterior, scaled as the denoiser takes it, gives the script's latents."""
    with torch.no_grad():
        mean, std = parts.functions.encode_images(parts.vae, tensors["pixel_values"])
    if "raw_latents" not in tensors:  # of an autoencoder without a posterior
        assert not std.any()
        assert (mean - tensors["latents"]).abs().max() <= 1e-5
        return
    draw = (tensors["raw_latents"] - tensors["posterior_mean"]) / tensors["posterior_std"]
    latents = mean + std * draw if draw.any() else mean
    assert (latents - tensors["latents"]).abs().max() <= 1e-5


def weigh_as_script(
    config: Config, parts: Components, module: DreamBoothModule, batch: Batch, step: GoldenStep
) -> tuple[Tensor, Tensor]:
    """Of a script that weighs otherwise than its paper: our errors, by its weights."""
    weights = parts.functions.forward_process(parts).compute_weights(config.loss, batch.times)
    assert weights is not None
    theirs = step.tensors["snr_weights"]
    assert not torch.allclose(weights, theirs, rtol=0.1)
    errors = module.compute_errors(batch) / weights * theirs
    instance, prior = mean_instance_and_prior_errors(errors, batch.num_photographs)
    loss = prior_preserving_loss(instance, [prior], config.prior.loss_weights)
    return loss, torch.stack([instance, prior])


def check_gradients(module: DreamBoothModule, step: GoldenStep) -> None:
    gradients: dict[str, Any] = {
        name.removesuffix(".default.weight"): parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    assert gradients.keys() == step.gradient_norms.keys()
    # The whole gradient is a vector, and each weight's share of it may be off by so much.
    total = sum(norm**2 for norm in step.gradient_norms.values()) ** 0.5
    for name, gradient in gradients.items():
        norm = step.gradient_norms[name]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6 * total), name
        assert abs(gradient.norm().item() - norm) <= ROUNDING * total, name
        whole = step.tensors.get(f"gradient.{name}")
        if whole is not None:
            assert (gradient - whole).norm() <= ROUNDING * total, name
