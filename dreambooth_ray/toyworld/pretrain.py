"""From nothing to the shipped weights: images, autoencoder, evaluator, denoiser, export.

Every stage leaves a file in the work folder and is skipped when it is there, and every
training phase resumes from its newest checkpoint, so the command can be stopped and
started at will.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from transformers import CLIPTokenizer

from dreambooth_ray.compat.diffusers import set_component_source
from dreambooth_ray.toyworld.pretrain_denoiser import DenoiserLoss, cache_latents, denoiser_phase
from dreambooth_ray.toyworld.pretrain_evaluator import (
    EvaluatorLoss,
    evaluator_phase,
    generate_reconstructions,
)
from dreambooth_ray.toyworld.pretrain_phase import read_averaged_weights, train_phase_in_processes
from dreambooth_ray.toyworld.pretrain_vae import (
    fold_latent_normalisation,
    load_trained_vae,
    vae_phase,
)
from dreambooth_ray.toyworld.world_captions import write_tokenizer
from dreambooth_ray.toyworld.world_images import generate_images, to_tensor


@dataclass(frozen=True)
class PretrainBudget:
    """How much work each stage gets. The defaults made the shipped weights."""

    num_images: int = 60_000
    num_reconstructions: int = 6_000
    vae_steps: int = 3_600
    evaluator_steps: int = 3_000
    denoiser_steps: int = 3_600
    processes: int = 2


def pretrain(work: Path, weights: Path, budget: PretrainBudget, seed: int) -> None:
    """Make `weights`/pipeline and `weights`/evaluator.safetensors, working in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "seed").write_text(str(seed))
    # Ties between merges are broken differently in each run, so it is written only once.
    if not (work / "tokenizer" / "tokenizer_config.json").exists():
        write_tokenizer(work / "tokenizer")
    generate_images(work / "pictures.npy", seed, budget.num_images, budget.processes)
    train_phase_in_processes(partial(vae_phase, steps=budget.vae_steps), work, budget.processes)
    vae = finish_vae(work)
    encode_images(work, vae, budget.processes)
    generate_reconstructions(work, vae, budget.num_reconstructions, seed)
    train_phase_in_processes(
        partial(evaluator_phase, steps=budget.evaluator_steps), work, budget.processes
    )
    train_phase_in_processes(
        partial(denoiser_phase, steps=budget.denoiser_steps), work, budget.processes
    )
    export_weights(work, weights)


def finish_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder with normalised latents, saved in {work}/vae."""
    folder = work / "vae"
    if not (folder / "config.json").exists():
        vae = load_trained_vae(work)
        images = np.load(work / "pictures.npy", mmap_mode="r")
        fold_latent_normalisation(vae, to_tensor(images[:600]))
        vae.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def encode_images(work: Path, vae: AutoencoderKL, processes: int) -> None:
    """Fill {work}/latents.npy with `processes` processes."""
    if (work / "latents.npy").exists():
        return
    num_images, latent_side = len(np.load(work / "pictures.npy", mmap_mode="r")), 16
    latents_shape = (num_images, 2, vae.config.latent_channels, latent_side, latent_side)
    partial_path = work / "latents.partial.npy"
    np.lib.format.open_memmap(
        partial_path, mode="w+", dtype=np.float16, shape=latents_shape
    ).flush()
    start_processes(  # type: ignore[no-untyped-call]
        _encode_process, (work, processes), nprocs=processes, start_method="spawn"
    )
    partial_path.rename(work / "latents.npy")


def _encode_process(rank: int, work: Path, world: int) -> None:
    torch.set_num_threads(1)
    cache_latents(work, AutoencoderKL.from_pretrained(work / "vae").eval(), rank, world)


def export_weights(work: Path, weights: Path) -> None:
    """Write what ships: a diffusers directory and the evaluator, both in half precision."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    loss_module = DenoiserLoss(tokenizer)
    loss_module.load_state_dict(read_averaged_weights(work / "denoiser.pt"))
    vae = finish_vae(work)
    set_component_source(vae, "toyworld")
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=loss_module.text_encoder,
        tokenizer=tokenizer,
        unet=loss_module.unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(weights / "pipeline", safe_serialization=True)
    export_evaluator(work, weights)


def export_evaluator(work: Path, weights: Path) -> None:
    """Write the evaluator's averaged weights in half precision."""
    loss_module = EvaluatorLoss()
    loss_module.load_state_dict(read_averaged_weights(work / "evaluator.pt"))
    half_weights: dict[str, Tensor] = {
        k: v.half().contiguous() for k, v in loss_module.network.state_dict().items()
    }
    weights.mkdir(parents=True, exist_ok=True)
    save_file(half_weights, weights / "evaluator.safetensors")
