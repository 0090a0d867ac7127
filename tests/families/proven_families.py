"""The tiny models that the proof is for, and where their families differ from each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from tests.families.reference_pipelines import pack_flux1


def as_they_are(parts: Any, latents: Tensor) -> Tensor:
    return latents


def unpatch_flux2(parts: Any, latents: Tensor) -> Tensor:
    """As Flux2KleinPipeline gives them: without the VAE's statistics, and not in patches."""
    statistics = parts.vae.bn
    deviation = (statistics.running_var + parts.vae.config.batch_norm_eps).sqrt()
    raw = latents * deviation.view(-1, 1, 1) + statistics.running_mean.view(-1, 1, 1)
    return torch.nn.functional.pixel_shuffle(raw, 2)


def tokens_of_flux2(parts: Any, latents: Tensor) -> Tensor:
    """As Flux2Pipeline gives them: tokens, one of a latent."""
    return latents.flatten(1).T


def pack(parts: Any, latents: Tensor) -> Tensor:
    """As the pipelines of FLUX.1, Chroma, Qwen-Image and Krea 2 give them: tokens of patches."""
    return pack_flux1(latents[None])[0]


@dataclass(frozen=True)
class ProvenModel:
    """What a tiny model is held against.

    golden: of GOLDEN_FAMILIES, whose steps are repeated; without, it is a variant of another
    published: of PUBLISHED_MODELS, whose memory is predicted
    inputs: what the script's denoiser calls each tensor of the conditioning, as far as it is given
        them; none to compare none
    solver: what the pipeline's own scheduler is; guidance: scales that it is sampled with
    negative_prompt: that the pipeline takes, where it takes one
    options: further ones of the pipeline's call
    compares_clean: whether the script compares an estimate of the clean latents, not the prediction
    has_no_script: whether it is trained and diffusers has no script for it: a test of its own has
        the arithmetic of its nearest relative's
    unread_formats: that diffusers reads at the published size alone; tests of names hold those
    convert: (C, h, w) latents of the engine to those that the pipeline gives
    left_out: cases of what the family does not train
    other_weights: cases whose script weighs errors otherwise than its paper
    text_rate: the script's own learning rate of text encoders, which the recording left as it is
    """

    golden: tuple[str, ...]
    inputs: Mapping[str, str]
    solver: str = "euler"
    guidance: tuple[float, ...] = (1.0, 4.0)
    negative_prompt: str | None = "blue"
    convert: Callable[[Any, Tensor], Tensor] = as_they_are
    left_out: frozenset[str] = frozenset()
    other_weights: frozenset[str] = frozenset()
    text_rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    unread_formats: frozenset[str] = frozenset()
    compares_clean: bool = False
    published: str = ""
    has_no_script: bool = False


# Packages outside the tree name their `ProvenModel` under it, as their tiny model is called.
ENTRY_POINTS = "dreambooth_ray.proven_models"
OUTSIDE = {entry.name: entry.load for entry in entry_points(group=ENTRY_POINTS)}
_HIDDEN = {"hidden": "encoder_hidden_states"}
# Its bins of sizes would make images of 64 pixels ones of 1024.
_SANA_OPTIONS = {"use_resolution_binning": False}
PROVEN_MODELS: dict[str, ProvenModel] = {
    "sd15": ProvenModel(("sd15", "sd15-lora"), _HIDDEN, solver="plms", published="sd15"),
    "sdxl": ProvenModel(
        ("sdxl",),
        _HIDDEN | {"pooled": "text_embeds", "time_ids": "time_ids"},
        # The script adds 1 behind the division; the paper, and diffusers' others, before it.
        other_weights=frozenset({"snr_v_prediction"}),
        text_rate=5e-6,
        published="sdxl",
    ),
    # Its script's denoiser takes lists.
    "z-image": ProvenModel(("z-image",), {}, published="z-image"),
    "z-image-turbo": ProvenModel((), {}),
    # Guidance is what its denoiser is told: there is no negative prompt.
    "flux1-dev": ProvenModel(
        ("flux1-dev",),
        {},
        negative_prompt=None,
        convert=pack,
        unread_formats=frozenset({"kohya"}),
        published="flux1-dev",
    ),
    "flux1-schnell": ProvenModel(
        (),
        {},
        guidance=(1.0,),
        negative_prompt=None,
        convert=pack,
        options={"max_sequence_length": 256},
    ),
    "chroma": ProvenModel(
        (),
        {},
        convert=pack,
        has_no_script=True,
        unread_formats=frozenset({"kohya"}),
        published="chroma",
    ),
    "qwen-image": ProvenModel(
        ("qwen-image",),
        _HIDDEN | {"is_token": "encoder_hidden_states_mask"},
        convert=pack,
        published="qwen-image",
    ),
    "krea2": ProvenModel(("krea2",), {}, guidance=(1.0, 5.5), convert=pack, published="krea2"),
    "krea2-turbo": ProvenModel((), {}, convert=pack),
    "sana": ProvenModel(
        ("sana",),
        _HIDDEN | {"mask": "encoder_attention_mask"},
        solver="dpmpp_2m",
        guidance=(1.0, 4.5),
        options=_SANA_OPTIONS,
        published="sana-1600m",
    ),
    "sana-flow-match": ProvenModel((), {}, guidance=(1.0, 4.5), options=_SANA_OPTIONS),
    "sana-1.5-2k": ProvenModel(
        (), {}, solver="dpmpp_2m", guidance=(1.0, 4.5), options=_SANA_OPTIONS
    ),
    "sd3": ProvenModel(
        ("sd3",), {}, guidance=(1.0, 7.0), compares_clean=True, published="sd3-medium"
    ),
    "sd3-without-t5": ProvenModel((), {}, guidance=(1.0, 7.0)),
    "sd35": ProvenModel((), {}, guidance=(1.0, 7.0)),
    # Its pipeline takes a negative prompt as embeddings alone.
    "flux2-klein": ProvenModel(
        ("flux2-klein",),
        _HIDDEN,
        negative_prompt=None,
        convert=unpatch_flux2,
        published="flux2-klein-4b",
    ),
    "flux2-klein-distilled": ProvenModel(
        (), {}, guidance=(1.0,), negative_prompt=None, convert=unpatch_flux2
    ),
    # Guidance is what its denoiser is told.
    "flux2-dev": ProvenModel(
        ("flux2-dev",),
        _HIDDEN | {"guidance": "guidance"},
        negative_prompt=None,
        convert=tokens_of_flux2,
        published="flux2-dev",
    ),
}
PROVEN_MODELS |= {name: load() for name, load in OUTSIDE.items()}
# One of each family that can be trained.
TRAINED_MODELS = [
    name for name, model in PROVEN_MODELS.items() if model.golden or model.has_no_script
]
