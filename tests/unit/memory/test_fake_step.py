"""The predicted peak of a step beside what torch's profiler counts in a real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.fake_step import count_step
from dreambooth_ray.memory.training_memory import count_worker_batch_images
from dreambooth_ray.models.activation_checkpointing import checkpoint_activations
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.precision import autocast_dtype, cast_frozen_layers
from dreambooth_ray.models.trainable_params import apply_train_method, has_trainable_weights

METHODS = {
    "full": ("train.method=full",),
    "unet": ("train.method=full", "train.text_encoder=false"),
    "lora": ("train.method=lora",),
    "dora": ("train.method=lora", "train.lora.dora=true"),
    "kv": ("train.method=kv",),
}
CASES = [
    (method, precision, checkpointing)
    for method in METHODS
    for precision in ("32", "bf16-mixed")
    for checkpointing in ("false", "true")
]
QUICK = {("full", "32", "false"), ("lora", "bf16-mixed", "true")}


def make_config(method: str, precision: str, checkpointing: str) -> Config:
    return parse_config(
        "subject: {photos: p, class_noun: robot}", "x",
        ["train.resolution=128", "train.batch_size=4", *METHODS[method],
         f"train.precision={precision}", f"train.gradient_checkpointing={checkpointing}"],
    )  # fmt: skip


def measure_peak(config: Config, directory: Path) -> int:
    """Most bytes that the CPU's allocator gave out in a second step, above those before it."""
    parts = load_components(directory)
    apply_train_method(config, parts)
    text_encoder = parts.text_encoder.train() if has_trainable_weights(parts.text_encoder) else None
    parts.unet.train()
    for model in (parts.unet, parts.text_encoder):
        cast_frozen_layers(model, config.train.precision)
    if config.train.gradient_checkpointing:
        checkpoint_activations(parts.unet, [text_encoder] if text_encoder else [])
    trained = [
        w for m in (parts.unet, parts.text_encoder) for w in m.parameters() if w.requires_grad
    ]
    optimizer = AdamW(trained, lr=1e-6, fused=True)
    batch, dtype = count_worker_batch_images(config), autocast_dtype(config.train.precision)
    side = config.train.side_px // parts.latent_factor
    length = parts.text_encoder.config.max_position_embeddings
    width = parts.text_encoder.config.hidden_size

    def take_step() -> None:
        latents = torch.randn(batch, 8, side, side)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden = (
                text_encoder(torch.zeros(batch, length, dtype=torch.int64)).last_hidden_state
                if text_encoder is not None
                else torch.randn(batch, length, width)
            )
            times = torch.zeros(batch, dtype=torch.int64)
            prediction = parts.unet(latents, times, hidden, return_dict=False)[0]
        (prediction.float() - latents).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    take_step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take_step()
    live_bytes = peak_bytes = 0
    for change in find_changes(profiler):
        live_bytes += change
        peak_bytes = max(peak_bytes, live_bytes)
    return peak_bytes


def find_changes(profiler: profile) -> Iterator[int]:
    """Bytes allocated (above 0) and freed, in the order of time."""
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = [e for e in events if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda e: e.start_ns()):
        yield event.nbytes()


@pytest.mark.parametrize(
    ("method", "precision", "checkpointing"),
    [pytest.param(*case, marks=() if case in QUICK else (pytest.mark.fault,)) for case in CASES],
)
def test_the_predicted_peak_is_what_the_allocator_gives_out(
    method: str, precision: str, checkpointing: str, toy_model: Path
) -> None:
    config = make_config(method, precision, checkpointing)
    predicted = count_step(config, toy_model, count_worker_batch_images(config))["with_gradients"]
    measured = measure_peak(config, toy_model)
    print(f"predicted {predicted / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB")
    assert predicted == pytest.approx(measured, rel=0.15)
