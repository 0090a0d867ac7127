"""A word that several text encoders learn: saved, read back by us and by diffusers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.components import Components, load_components, load_pipeline
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import model_hash
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.tiny_models import build_tiny

ENCODERS = {"sdxl": ("text_encoder", "text_encoder_2"), "flux1-dev": ("text_encoder",)}
PROMPT, SEED, GUIDANCE = "a <sks> robot in the rain", 3, 3.0
OVERRIDES = ["identifier.kind=learned", "train.unet=false", "train.text_encoder=false"]


def config_of(*overrides: str) -> Any:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", [*OVERRIDES, *overrides])


@pytest.fixture(scope="module", params=ENCODERS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


@pytest.fixture(scope="module")
def parts(directory: Path) -> Components:
    """With rows that were moved."""
    parts = load_components(directory)
    apply_train_method(config_of(), parts)
    generator = torch.Generator().manual_seed(0)
    for name in ENCODERS[directory.name]:
        rows = parts.text_encoders[name].get_input_embeddings().rows
        rows.data += torch.randn(rows.shape, generator=generator)
    return parts


@pytest.fixture(scope="module")
def bundle(directory: Path, parts: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    tokens.save_words(tokens.learned_embeddings(parts), folder / "adapter")
    about = {"kind": "adapter", "base_model": str(directory), "base_hash": model_hash(directory)}
    (folder / "manifest.json").write_text(json.dumps({"about": about, "files": []}))
    return folder


@pytest.fixture(scope="module")
def latents(bundle: Path) -> Tensor:
    request = Request(PROMPT, SEED, num_inference_steps=3, guidance_scale=GUIDANCE)
    return Engine(bundle).sample([request])[0].latents


def sample_pipeline(directory: Path, pipeline: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    images: Tensor = pipeline(
        prompt=PROMPT, num_inference_steps=3, guidance_scale=GUIDANCE, output_type="latent",
        width=64, height=64, generator=torch.Generator().manual_seed(SEED),
    ).images  # fmt: skip
    if directory.name != "flux1-dev":
        return images[0]
    unpack = pipeline._unpack_latents
    return unpack(images, 64, 64, pipeline.vae_scale_factor)[0]  # type: ignore[no-any-return]


def test_each_encoder_learns_its_own_embedding(directory: Path) -> None:
    parts = load_components(directory)
    apply_train_method(config_of(), parts)
    trained = {
        f"{part}.{name}": weight
        for part, network in parts.networks.items()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }
    assert {name.split(".")[0] for name in trained} == set(ENCODERS[directory.name])
    assert all(name.endswith("token_embedding.rows") for name in trained)
    training = parts.functions.text_training
    captions = training.tokenize(parts, ["a <sks> robot"])
    embed = training.make_token_encoder(parts, training.text_functions(parts.text_encoders))
    values = embed(captions).values
    torch.stack([value.square().sum() for value in values if value.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(w.grad is not None and bool(w.grad.abs().max() > 0) for w in trained.values())


def test_the_word_changes_what_is_sampled(directory: Path, latents: Tensor) -> None:
    request = Request(
        PROMPT.replace("<sks>", "robot"), SEED, num_inference_steps=3, guidance_scale=GUIDANCE
    )
    plain = Engine(directory).sample([request])[0].latents
    assert (plain - latents).abs().max() > 1e-2


def test_diffusers_reads_each_encoders_word_as_a_textual_inversion(
    directory: Path, bundle: Path, latents: Tensor
) -> None:
    pipeline = load_pipeline(directory)
    for name in ENCODERS[directory.name]:
        pipeline.load_textual_inversion(
            str(tokens.words_path(bundle / "adapter", name)),
            text_encoder=getattr(pipeline, name),
            tokenizer=getattr(pipeline, name.replace("text_encoder", "tokenizer")),
        )
    assert (sample_pipeline(directory, pipeline) - latents).abs().max() <= 1e-4


def test_a_directory_of_the_bundle_has_the_word(
    directory: Path, bundle: Path, latents: Tensor, tmp_path: Path
) -> None:
    out = export_run(str(bundle), "diffusers", tmp_path / "model")
    read = DiffusionPipeline.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    assert (sample_pipeline(directory, read) - latents).abs().max() <= 1e-4
    with pytest.raises(ConfigError, match="would not hold the learned word <sks>"):
        export_run(str(bundle), "lora", tmp_path / "model.safetensors")


def test_a_word_of_either_vocabulary_is_refused(directory: Path) -> None:
    check_training_settings(config_of(), directory)
    with pytest.raises(ConfigError, match="a word of the model already"):
        check_training_settings(config_of("subject.identifier=<|endoftext|>"), directory)
