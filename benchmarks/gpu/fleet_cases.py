"""Training steps of K subjects in one batch on one device, and of one subject at a time.

Both take one photograph and one class image of a subject a step.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import device as devices
from benchmarks.gpu.train_cases import (
    BF16,
    LORA,
    NUM_COUNTED,
    WARMUP_STEPS,
    OurTraining,
    TrainingCase,
    make_config,
    make_paired_dataset,
)
from benchmarks.random_models import ModelSize, make_random_components
from dreambooth_ray.training.slots.slot_trainer import SlotTrainer

# The denoiser's adapters alone: text encoders are frozen in slots.
SETTINGS = (*LORA, *BF16, "train.text_encoder=false")
CHECKPOINTING = ("train.gradient_checkpointing=true",)


@dataclass(frozen=True)
class FleetCase:
    """settings: of the configuration, of all subjects"""

    num_subjects: int
    settings: tuple[str, ...] = SETTINGS

    @property
    def name(self) -> str:
        """As the record has it."""
        name_suffix = ", checkpointing" if set(CHECKPOINTING) <= set(self.settings) else ""
        return f"{self.num_subjects} subjects, lora, bf16{name_suffix}"


# The largest may be beyond a card's memory, and is less with checkpointing.
CASES = (
    FleetCase(1),
    FleetCase(8),
    FleetCase(32),
    FleetCase(32, (*SETTINGS, *CHECKPOINTING)),
)


def make_slot_trainer(
    case: FleetCase, size: ModelSize, device: torch.device, num_steps: int
) -> SlotTrainer:
    """Subjects in all slots; their seeds differ, and so does what each sees."""
    config = make_config(size, device.type == "cuda", num_steps, case.settings)
    components = make_random_components(size, device)
    for component_network in components.networks.values():
        component_network.requires_grad_(False)
    slot_trainer = SlotTrainer(
        config, components, case.num_subjects, config.train.lora.rank, device
    )
    for seed in range(case.num_subjects):
        subject_config = config.model_copy(update={"seed": seed})
        slot_trainer.join(subject_config, make_paired_dataset(subject_config, components, size))
    components.vae.to("cpu")
    return slot_trainer


def take_step(trainer: SlotTrainer) -> torch.Tensor:
    """A step of all subjects, read from the device as a worker does: (K, 3), on the CPU."""
    return torch.stack(list(trainer.step().values.values())).cpu()


def measure_case(
    case: FleetCase, size: ModelSize, device: torch.device, num_timed: int
) -> dict[str, Any]:
    """Subject-steps and images a second, peak memory, waits of the host; and one at a time."""
    devices.free_memory(device)
    slot_trainer = make_slot_trainer(case, size, device, WARMUP_STEPS + num_timed + NUM_COUNTED)
    for _ in range(WARMUP_STEPS):
        take_step(slot_trainer)
    devices.reset_peak(device)
    step_s = devices.time_work(partial(take_step, slot_trainer), device, num_timed)
    record: dict[str, Any] = {**_compute_speeds(step_s, case.num_subjects)}
    record |= devices.read_peak(device)
    with devices.count_host_waits(device) as waits_by_line:
        for _ in range(NUM_COUNTED):
            losses = take_step(slot_trainer)
    record |= {
        "waits_a_step": {name: count / NUM_COUNTED for name, count in waits_by_line.items()},
        "last_loss": float(losses[:, 0].mean()),
    }
    del slot_trainer
    record["one at a time"] = solo_record = measure_alone(size, device, num_timed)
    record["ratio"] = round(record["subject_steps_s"] / solo_record["subject_steps_s"], 3)
    flops = case.num_subjects * solo_record["flops"]
    record["utilisation"] = devices.compute_utilisation(flops, step_s, is_half=True)
    return record


def measure_alone(size: ModelSize, device: torch.device, num_timed: int) -> dict[str, Any]:
    """One subject under the loop of a run alone."""
    devices.free_memory(device)
    solo_training = OurTraining(TrainingCase("alone", SETTINGS), size, device, num_timed)
    solo_training.run()
    record = {**_compute_speeds(solo_training.timer.steps_s[0], 1), **devices.read_peak(device)}
    return {**record, "flops": solo_training.count_flops()}


def _compute_speeds(step_s: float, num_subjects: int) -> dict[str, float]:
    return {
        "step_s": round(step_s, 5),
        "subject_steps_s": round(num_subjects / step_s, 3),
        "images_s": round(2 * num_subjects / step_s, 3),
    }
