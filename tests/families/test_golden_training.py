"""A family's training step equals that of diffusers' own script: inputs, loss and gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_method
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
from tests.families.golden_values import GoldenStep, fill_lora, load_golden
from tests.families.tiny_models import build_tiny

FAMILIES = ["z-image", "flux1-dev", "flux2-klein", "sd3"]
CASES = [(family, case) for family in FAMILIES for case in GOLDEN_FAMILIES[family].cases]
# Keys of a recipe for an argument of a script.
_SETTINGS = {
    "--weighting_scheme=sigma_sqrt": "loss.weighting=sigma_sqrt",
    "--weighting_scheme=cosmap": "loss.weighting=cosmap",
    "--weighting_scheme=mode": "loss.timesteps=mode",
    "--weighting_scheme=logit_normal": "loss.timesteps=logit_normal",
    "--train_text_encoder": "train.text_encoder=true",
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: build_tiny(
            GOLDEN_FAMILIES[family].tiny_model, tmp_path_factory.mktemp("tiny") / family
        )
        for family in FAMILIES
    }


def build_module(
    directory: Path, family: str, case: str
) -> tuple[DreamBoothModule, Components, list[str]]:
    """With the golden adapters; and the names of the weights that are trained."""
    golden_case = GOLDEN_FAMILIES[family].cases[case]
    settings = [_SETTINGS[a] for a in golden_case.arguments if a in _SETTINGS]
    settings += ["train.method=lora", f"train.lora.rank={RANK}", f"train.lora.alpha={RANK}"]
    settings += (
        [f"prior.weight={PRIOR_LOSS_WEIGHT}"] if golden_case.has_prior else ["prior.count=0"]
    )
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", settings)
    config = fill_model_defaults(config, find_family(directory))
    parts = load_components(directory)
    apply_method(config, parts)
    for name, network in parts.networks.items():
        fill_lora(name, network)
    module = DreamBoothModule(config, parts)
    return module, parts, [n for n, p in module.named_parameters() if p.requires_grad]


def list_prompts(step: GoldenStep, has_prior: bool) -> list[str]:
    num_rows = len(step.tensors["latents"])
    if not has_prior:
        return [INSTANCE_PROMPT] * num_rows
    return [INSTANCE_PROMPT] * (num_rows // 2) + [CLASS_PROMPT] * (num_rows // 2)


def build_batch(
    step: GoldenStep, embedded: tuple[Conditioning | None, Conditioning | None], has_prior: bool
) -> Batch:
    """A recorded step's inputs as ours. embedded: tokens and conditioning"""
    latents = step.tensors["latents"]
    frame = ImageFrame.of_whole(*step.tensors["pixel_values"].shape[-2:])
    return Batch(
        latents=latents,
        noise=step.tensors["noise"],
        times=step.tensors["sigmas"].flatten(),
        tokens=embedded[0],
        conditioning=embedded[1],
        frames=torch.tensor([frame] * len(latents)),
        num_photographs=len(latents) // 2 if has_prior else len(latents),
        step=0,
    )


def encode_as_recorded(parts: Components, step: GoldenStep) -> Tensor:
    """Where the script draws from the posterior, by its draw."""
    mean, deviation = parts.functions.encode_images(parts.vae, step.tensors["pixel_values"])
    posterior_mean, posterior_std = (step.tensors[f"posterior_{x}"] for x in ("mean", "std"))
    draw = (step.tensors["raw_latents"] - posterior_mean) / posterior_std
    return mean + deviation * draw if deviation.any() else mean


@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_step_is_the_script_s(directories: dict[str, Path], family: str, case: str) -> None:
    has_prior = GOLDEN_FAMILIES[family].cases[case].has_prior
    module, parts, trained = build_module(directories[family], family, case)
    run = load_golden(family)[case]
    for step in run.steps:
        prompts = list_prompts(step, has_prior)
        embedded = CaptionEmbeddings(parts, prompts).look_up(prompts)
        batch = build_batch(step, embedded, has_prior)
        assert_close(encode_as_recorded(parts, step), step.tensors["latents"])
        module.zero_grad()
        loss, _ = module.compute_loss(batch)
        assert loss.item() == pytest.approx(step.loss, rel=1e-5)
        loss.backward()
        gradients = {
            name.removesuffix(".default.weight"): module.get_parameter(name).grad
            for name in trained
        }
        assert gradients.keys() == step.gradient_norms.keys()
        for name, gradient in gradients.items():
            norm = step.gradient_norms[name]
            assert gradient is not None
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-7)
            if (whole := step.tensors.get(f"gradient.{name}")) is not None:
                assert (gradient - whole).norm() <= 1e-5 * norm


def assert_close(ours: Tensor, recorded: Tensor) -> None:
    assert ours.shape == recorded.shape
    assert (ours - recorded).norm() <= 1e-5 * recorded.norm()
