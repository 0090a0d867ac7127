"""e. The predicted peak of a step of each family, beside what torch's profiler counts in one."""

import math
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.fake_step import count_step
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_functions import ImageFrame
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.caption_embeddings import CaptionEmbeddings
from dreambooth_ray.training.module import DreamBoothModule
from tests.families.proven_families import TRAINED_MODELS
from tests.unit.memory.test_fake_step import find_changes

SIDE_PX, BATCH = 256, 4
CAPTION = "a photo of sks robot"
_LATENT_TENSORS = 8  # of a step: latents, noise, noisy ones, prediction, target, error and such


def make_config(directory: Path, *settings: str) -> Config:
    overrides = [
        f"model.uri={directory}", f"train.resolution={SIDE_PX}", f"train.batch_size={BATCH}",
        "prior.count=0", "train.lora.rank=2", *settings,
    ]  # fmt: skip
    config = parse_config("subject: {photos: p, class_noun: robot}", "x", overrides)
    return fill_model_defaults(config, find_family(directory))


def shape_of_batch(directory: Path) -> tuple[int, ...]:
    with torch.device("meta"):
        parts = find_family(directory).load_functions().build_empty_components(directory)
    side = SIDE_PX // parts.latent_factor
    return BATCH, parts.functions.latent_channels(parts.vae), side, side


def measure_peak(config: Config, directory: Path) -> int:
    """Most bytes that the CPU's allocator gave out in a second step, above those before it."""
    parts = load_components(directory)
    apply_train_method(config, parts)
    module = DreamBoothModule(config, parts)
    shape = shape_of_batch(directory)
    tokens, conditioning = CaptionEmbeddings(parts, [CAPTION]).look_up([CAPTION] * BATCH)
    is_flow = parts.family.process == "flow"
    times = torch.full((BATCH,), 0.5) if is_flow else torch.full((BATCH,), 500)
    frames = torch.tensor([ImageFrame.of_whole_image(SIDE_PX, SIDE_PX)] * BATCH)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = AdamW(trained, lr=1e-6, fused=True)

    def take_step(step: int) -> None:
        batch = Batch(
            torch.randn(shape), torch.randn(shape), times, tokens, conditioning, frames, BATCH, step
        )
        module.compute_loss(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    take_step(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take_step(1)
    live_bytes = peak_bytes = 0
    for change in find_changes(profiler):
        live_bytes += change
        peak_bytes = max(peak_bytes, live_bytes)
    return peak_bytes


CASES = [(name, method) for name in TRAINED_MODELS for method in ("lora", "full")]
QUICK = {("sd3", "lora")}
# A step of all of Qwen-Image's weights takes 17 % more than predicted, at tiny size, and one of
# Chroma's adapters 13 % less: its example has a longer caption than the test. Krea 2's takes 23 %
# more: its example has 64 tokens, and the tiny tokenizer makes 148 of the caption. An example of as
# many is predicted to take what was measured, to 0.3 %.
TOLERANCES = {"qwen-image": 0.2, "chroma": 0.2, "krea2": 0.25}


@pytest.mark.parametrize(
    ("name", "method"),
    [pytest.param(*case, marks=() if case in QUICK else (pytest.mark.fault,)) for case in CASES],
)
def test_the_predicted_peak_is_what_a_step_takes(
    tiny_directories: dict[str, Path], name: str, method: str
) -> None:
    directory = tiny_directories[name]
    trains_text = bool(find_family(directory).trainable_text_encoders)
    config = make_config(
        directory, f"train.method={method}", f"train.text_encoder={str(trains_text).lower()}"
    )
    predicted = count_step(config, directory, BATCH)["with_gradients"]
    measured = measure_peak(config, directory)
    print(f"{name}: predicted {predicted / 2**20:.2f} MiB, measured {measured / 2**20:.2f} MiB")
    # A batch's own latents, noise and targets are no part of the estimate: at tiny size they show.
    batch_bytes = _LATENT_TENSORS * 4 * math.prod(shape_of_batch(directory))
    assert predicted == pytest.approx(measured, rel=TOLERANCES.get(name, 0.15), abs=batch_bytes)
