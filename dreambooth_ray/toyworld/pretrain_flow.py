"""From nothing to the flow model: latents, one training by the clock, a diffusers directory.

Made for a GPU that is lent for minutes as much as for a CPU overnight: the learning rate follows
the share of the time that has passed, the newest averaged weights are written every minute, and a
run that was stopped goes on from its checkpoint.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from dreambooth_ray.errors import DataError
from dreambooth_ray.models.families.z_image_forward import forward_batched_tensors
from dreambooth_ray.models.precision import use_fast_float32
from dreambooth_ray.toyworld.evaluator import load_evaluator
from dreambooth_ray.toyworld.flow_dataset import (
    FlowBatch,
    FlowDataset,
    encode_toy_images,
    load_flow_dataset,
)
from dreambooth_ray.toyworld.flow_model import (
    assemble_pipeline,
    encode_tokens,
    load_flow_vae,
    new_flow_text_encoder,
    new_transformer,
)
from dreambooth_ray.toyworld.flow_samples import contact_sheet, sample_images, score_flow_images
from dreambooth_ray.toyworld.flow_tokenizer import new_flow_tokenizer
from dreambooth_ray.toyworld.pretrain_phase import WarmupMovingAverage
from dreambooth_ray.toyworld.scoring_prompts import attribute_prompts

SAVE_EVERY_S = 60.0
WARMUP_STEPS = 300
LOG_EVERY = 50
PARTS = ("transformer", "text_encoder")
Log = Callable[[str], None]


@dataclass(frozen=True)
class FlowPretrainSettings:
    """What one call does.

    work: latents and the checkpoint; weights: gets flow-pipeline/; snapshots: averaged weights,
    log, scores and contact sheet; started: time.monotonic() at which budget_s began;
    num_scored: held-out prompts sampled at the end, within reserve_s; start_from: snapshots of an
    earlier training to begin at, or None
    """

    work: Path
    weights: Path
    snapshots: Path
    seed: int
    num_images: int
    batch_size: int
    learning_rate: float
    started: float
    budget_s: float
    reserve_s: float
    workers: int
    device: torch.device
    compiled: bool
    num_scored: int
    start_from: Path | None = None

    def log(self, line: str) -> None:
        """Print a line and append it to the log, with the seconds since the start."""
        line = f"{time.monotonic() - self.started:7.1f} s  {line}"
        print(line, flush=True)
        with (self.snapshots / "flow-log.txt").open("a") as stream:
            stream.write(line + "\n")


class FlowLoss(nn.Module):
    """Squared error of the velocity, at noise levels spread evenly over 0 to 1."""

    def __init__(self, tokenizer: Qwen2Tokenizer, latent_channels: int) -> None:
        super().__init__()
        self.transformer = new_transformer(latent_channels)
        self.text_encoder = new_flow_text_encoder(tokenizer)
        self.pad_id = tokenizer.pad_token_id

    def forward(self, batch: FlowBatch) -> Tensor:
        """The batch's mean loss, a scalar in float32."""
        sigma = batch.sigma[:, None, None, None]
        noisy_latents = (1 - sigma) * batch.latents + sigma * batch.noise
        negative_velocity = forward_batched_tensors(
            self.transformer,
            noisy_latents,
            1 - batch.sigma,
            encode_tokens(self.text_encoder, batch.token_ids),
            batch.token_ids != self.pad_id,
        )
        target = batch.latents - batch.noise
        return (negative_velocity.float() - target).square().mean()


@dataclass
class FlowTrainingState:
    """Weights, their average, the optimizer, and how far they are."""

    loss: FlowLoss
    averaged: FlowLoss
    optimizer: torch.optim.Optimizer
    step: int = 0
    trained_s: float = 0.0

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        checkpoint_state = {
            "loss": self.loss.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "trained_s": self.trained_s,
        }
        partial_path = path.with_suffix(".partial")
        torch.save(checkpoint_state, partial_path)
        partial_path.replace(path)

    def restore(self, path: Path) -> None:
        """Take up a checkpoint."""
        checkpoint_state = torch.load(path, weights_only=True, map_location="cpu")
        self.loss.load_state_dict(checkpoint_state["loss"])
        self.averaged.load_state_dict(checkpoint_state["averaged"])
        self.optimizer.load_state_dict(checkpoint_state["optimizer"])
        self.step, self.trained_s = checkpoint_state["step"], checkpoint_state["trained_s"]


def pretrain_flow(run: FlowPretrainSettings) -> None:
    """Make the flow model within the budget: flow-pipeline/ in `run.weights`."""
    for folder in (run.work, run.weights, run.snapshots):
        folder.mkdir(parents=True, exist_ok=True)
    use_fast_float32(run.device)
    tokenizer, vae = new_flow_tokenizer(), load_flow_vae().to(run.device)
    run.log(f"device {run.device}, batch {run.batch_size}, {run.num_images} images")
    encode_toy_images(run.work, vae, tokenizer, run.seed, run.num_images, run.workers, run.log)
    dataset = load_flow_dataset(run.work, tokenizer, run.device)
    flow_trainer = new_flow_trainer(run, tokenizer, vae.config.latent_channels)
    train(run, flow_trainer, dataset)
    write_weights_snapshot(run, flow_trainer)
    pipeline = load_snapshot_pipeline(run.snapshots).to(run.device)
    if run.num_scored:
        held_out_prompts = [prompt for prompt, _ in attribute_prompts(run.num_scored)]
        images = sample_images(pipeline, held_out_prompts, run.seed)
        contact_sheet(images[:100]).save(run.snapshots / "flow-samples.png")
        scores = score_flow_images(images, load_evaluator())
        (run.snapshots / "flow-scores.json").write_text(json.dumps(scores, indent=1) + "\n")
        run.log(f"{run.num_scored} held-out prompts: {scores}")
    export_flow(run.snapshots, run.weights)


def new_flow_trainer(
    run: FlowPretrainSettings, tokenizer: Qwen2Tokenizer, latent_channels: int
) -> FlowTrainingState:
    """A trainer at its checkpoint, at `run.start_from`'s weights, or untrained."""
    torch.manual_seed(run.seed)
    loss_module = FlowLoss(tokenizer, latent_channels)
    if run.start_from is not None:
        load_snapshot_weights(run.start_from, loss_module)
    loss_module.to(run.device)
    averaged_module = copy.deepcopy(loss_module).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        loss_module.parameters(),
        lr=run.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=True,
    )
    flow_trainer = FlowTrainingState(loss_module, averaged_module, optimizer)
    if (run.work / "flow.pt").exists():
        flow_trainer.restore(run.work / "flow.pt")
        run.log(f"went on from step {flow_trainer.step}, {flow_trainer.trained_s:.0f} s trained")
    if run.compiled:
        # A block at a time: one graph serves all blocks of a kind, in seconds.
        loss_module.transformer.compile_repeated_blocks(dynamic=False)
    return flow_trainer


def train(run: FlowPretrainSettings, trainer: FlowTrainingState, dataset: FlowDataset) -> None:
    """Take steps until the budget, less its reserve, is spent."""
    start_s, trained_before_s = time.monotonic(), trainer.trained_s
    available_s = run.budget_s - run.reserve_s - (start_s - run.started)
    run.log(f"training for {available_s - trained_before_s:.0f} s")
    moving_average = WarmupMovingAverage(0.999)
    last_save_s, last_log_time_and_step = start_s, (start_s, trainer.step)
    while trainer.trained_s < available_s:
        rate_factor = compute_rate_factor(trainer.step, trainer.trained_s / available_s)
        batch = dataset.make_training_batch(run.seed, trainer.step, run.batch_size)
        loss = take_step(run, trainer, batch, rate_factor * run.learning_rate)
        trainer.step += 1
        moving_average(
            list(trainer.averaged.parameters()), list(trainer.loss.parameters()), trainer.step
        )
        now_s = time.monotonic()
        if trainer.step % LOG_EVERY == 0:
            loss_value = loss.item()  # waits for the device, so that the clock is true
            now_s = time.monotonic()
            steps_per_s = (trainer.step - last_log_time_and_step[1]) / (
                now_s - last_log_time_and_step[0]
            )
            run.log(f"step {trainer.step} loss {loss_value:.4f} {steps_per_s:.1f} steps/s")
            last_log_time_and_step = (now_s, trainer.step)
        trainer.trained_s = trained_before_s + now_s - start_s
        if now_s - last_save_s > SAVE_EVERY_S:
            write_weights_snapshot(run, trainer)
            last_save_s = time.monotonic()
    run.log(f"trained {trainer.step} steps")


def compute_rate_factor(step: int, progress: float) -> float:
    """Of the learning rate: a warm-up by steps, then a cosine over the time, down to 1 %."""
    cosine_factor = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * cosine_factor)


def take_step(
    run: FlowPretrainSettings, trainer: FlowTrainingState, batch: FlowBatch, rate: float
) -> Tensor:
    """One optimizer step at a learning rate; returns the loss, still on the device."""
    try:
        loss = _compute_gradients(run, trainer, batch)
    except Exception as error:
        if not run.compiled:
            raise
        run.log(f"not compiled: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        torch.compiler.set_stance("force_eager")
        loss = _compute_gradients(run, trainer, batch)
    nn.utils.clip_grad_norm_(trainer.loss.parameters(), 1.0, foreach=True)
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    trainer.optimizer.step()
    return loss


def _compute_gradients(
    run: FlowPretrainSettings, trainer: FlowTrainingState, batch: FlowBatch
) -> Tensor:
    trainer.optimizer.zero_grad()
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
        loss: Tensor = trainer.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def write_weights_snapshot(run: FlowPretrainSettings, trainer: FlowTrainingState) -> None:
    """The checkpoint in `work`, and the averaged weights in half precision in `snapshots`."""
    trainer.save(run.work / "flow.pt")
    for network_name in PARTS:
        averaged_weights = getattr(trainer.averaged, network_name).state_dict()
        partial_path = run.snapshots / f"{network_name}.partial"
        save_file(
            {k: v.half().contiguous().cpu() for k, v in averaged_weights.items()}, partial_path
        )
        partial_path.replace(run.snapshots / f"{network_name}.safetensors")


def load_snapshot_weights(snapshots: Path, parts: Any) -> None:
    """Put a snapshot's weights into the `transformer` and `text_encoder` of `parts`.

    raises: DataError where a file is missing
    """
    for network_name in PARTS:
        path = snapshots / f"{network_name}.safetensors"
        if not path.is_file():
            raise DataError(
                f"{path} is not there; give the folder that pretrain-flow wrote its snapshots to"
            )
        network_weights = load_file(path)
        getattr(parts, network_name).load_state_dict(
            {k: v.float() for k, v in network_weights.items()}
        )


def load_snapshot_pipeline(snapshots: Path) -> ZImagePipeline:
    """diffusers' pipeline of a snapshot's weights, in float32."""
    tokenizer, vae = new_flow_tokenizer(), load_flow_vae()
    loss_module = FlowLoss(tokenizer, vae.config.latent_channels).eval()
    load_snapshot_weights(snapshots, loss_module)
    return assemble_pipeline(loss_module.transformer, loss_module.text_encoder, tokenizer, vae)


def export_flow(snapshots: Path, weights: Path) -> Path:
    """Write {weights}/flow-pipeline, a diffusers directory in half precision, of a snapshot."""
    folder = weights / "flow-pipeline"
    load_snapshot_pipeline(snapshots).to(dtype=torch.float16).save_pretrained(folder)
    return folder
