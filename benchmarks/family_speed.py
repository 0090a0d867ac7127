"""Any model family beside diffusers' own pipeline and networks: a training step, and images.

    python -m benchmarks.family_speed DIRECTORY... [--out benchmarks/results/families.json]

A directory is a model's in diffusers format. At tiny size, as the tests' models are, this measures
Python between operations more than arithmetic. The peer's network is given what the pipeline itself
gave it in a forward. One thread, one process, in turns.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from benchmarks.conditions import read_conditions
from benchmarks.measure import BenchmarkCase, compare_sides, make_timed
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models.components import Components, load_components, load_pipeline
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings
from dreambooth_ray.training.module import DreamBoothModule

PROMPTS = ["a photo of sks robot", "a photo of a robot"]
SIDE_PX, RANK = 64, 8
NUM_IMAGES, SAMPLING_STEPS, TRAINING_STEPS = 4, 10, 20


def measure_family(directory: Path, pairs: int) -> list[dict[str, Any]]:
    """The cases of one directory."""
    family_title = find_family(directory).title
    return [
        compare_sides(
            BenchmarkCase(f"{family_title}, LoRA step", "diffusers", TRAINING_STEPS, "steps", 1.0),
            make_timed(make_our_training(directory)),
            make_timed(make_their_training(directory)),
            pairs,
        ),
        compare_sides(
            BenchmarkCase(
                f"{family_title}, {NUM_IMAGES} images", "diffusers", NUM_IMAGES, "images", 1.0
            ),
            make_timed(make_our_sampling(directory)),
            make_timed(make_their_sampling(directory)),
            pairs,
        ),
    ]


def make_our_training(directory: Path) -> Callable[[], None]:
    """TRAINING_STEPS steps of the product's module: noise, loss, backward, clipping, optimizer."""
    overrides = ["train.method=lora", f"train.lora.rank={RANK}", f"train.resolution={SIDE_PX}"]
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)
    config = fill_model_defaults(config, find_family(directory))
    components = load_components(directory)
    apply_train_method(config, components)
    module = DreamBoothModule(config, components)
    optimizer: Any = module.configure_optimizers()["optimizer"]
    batch = _make_batch(components)

    def take_steps() -> None:
        for _ in range(TRAINING_STEPS):
            loss, _ = module.compute_loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return take_steps


def _make_batch(parts: Components) -> Batch:
    """One photograph and one class image."""
    tokens, conditioning = CaptionEmbeddings(parts, PROMPTS).look_up(PROMPTS)
    latent_side = SIDE_PX // parts.latent_factor
    latent_shape = (
        len(PROMPTS),
        parts.functions.latent_channels(parts.vae),
        latent_side,
        latent_side,
    )
    forward_process = parts.functions.forward_process(parts)
    return Batch(
        latents=torch.randn(latent_shape),
        noise=torch.randn(latent_shape),
        times=forward_process.to_tensor(forward_process.times_at_fractions([0.3, 0.7])),
        tokens=tokens,
        conditioning=conditioning,
        frames=torch.tensor([ImageFrame.of_whole_image(SIDE_PX, SIDE_PX)] * len(PROMPTS)),
        num_photographs=1,
        step=0,
    )


def make_their_training(directory: Path) -> Callable[[], None]:
    """As many steps of diffusers' network on what its pipeline gives it, without noise to add."""
    pipeline: Any = load_pipeline(directory)
    family = find_family(directory)
    denoiser: nn.Module = getattr(pipeline, family.denoiser.name)
    denoiser_args, denoiser_kwargs = _capture_denoiser_inputs(pipeline, denoiser)
    denoiser.requires_grad_(False)
    adapted_denoiser: Any = denoiser
    lora_module_names = [
        name
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear)
        and any(name == target or name.endswith(f".{target}") for target in family.lora_targets)
    ]
    adapted_denoiser.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=lora_module_names)
    )
    trained_weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained_weights)
    denoiser.train()
    target_tensors: list[Tensor] = []

    def take_steps() -> None:
        for _ in range(TRAINING_STEPS):
            denoiser_output = denoiser(*denoiser_args, **denoiser_kwargs)[0]
            denoiser_predictions = (
                denoiser_output if isinstance(denoiser_output, list) else [denoiser_output]
            )
            if not target_tensors:
                target_tensors.extend(torch.randn_like(row) for row in denoiser_predictions)
            losses = [
                torch.nn.functional.mse_loss(row, wanted)
                for row, wanted in zip(denoiser_predictions, target_tensors, strict=True)
            ]
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained_weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return take_steps


def _capture_denoiser_inputs(
    pipeline: Any, network: nn.Module
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the pipeline calls its network with, for two prompts without guidance."""
    recorded_inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = network.register_forward_pre_hook(
        lambda _, arguments, inputs: recorded_inputs.append((arguments, inputs)), with_kwargs=True
    )
    guidance_scale = 0.0 if type(pipeline).__name__ == "ZImagePipeline" else 1.0
    _call_pipeline(pipeline, PROMPTS, 1, guidance_scale)
    hook.remove()
    return recorded_inputs[0]


def _call_pipeline(
    pipeline: Any, prompts: list[str], num_steps: int, guidance_scale: float
) -> list[Any]:
    images: list[Any] = pipeline(
        prompt=prompts,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        width=SIDE_PX,
        height=SIDE_PX,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
    ).images
    return images


def make_our_sampling(directory: Path) -> Callable[[], None]:
    """NUM_IMAGES images at once by the engine, as replicas have it."""
    engine = Engine(directory, lives_long=True)
    family = find_family(directory)
    guidance_scale = 4.0 if family.has_guidance else 1.0
    sampling_requests = [
        Request(
            PROMPTS[0],
            seed,
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=guidance_scale,
            width_px=SIDE_PX,
            height_px=SIDE_PX,
        )
        for seed in range(NUM_IMAGES)
    ]

    def sample() -> None:
        engine.sample(sampling_requests)

    return sample


def make_their_sampling(directory: Path) -> Callable[[], None]:
    """As many by one call of the pipeline, with guidance alike."""
    pipeline: Any = load_pipeline(directory)
    guidance_scale = 4.0 if find_family(directory).has_guidance else 1.0
    if type(pipeline).__name__ == "ZImagePipeline":
        guidance_scale -= 1  # its scale is of the difference alone

    def sample() -> None:
        _call_pipeline(pipeline, [PROMPTS[0]] * NUM_IMAGES, SAMPLING_STEPS, guidance_scale)

    return sample


def main() -> None:
    """Measure, print a line a case, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    for directory in arguments.directories:
        for case in measure_family(directory, arguments.pairs):
            quantiles = case["ratio"]
            print(
                f"{case['case']}: {quantiles['median']} ({quantiles['p5']} to {quantiles['p95']})"
            )
            cases.append(case)
    if arguments.out is not None:
        record = {"cases": cases, "conditions": read_conditions()}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
