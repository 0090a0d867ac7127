"""Training steps of K subjects in one batch, against the same steps one subject after another.

Both sides are in one process, on one thread, with a model that is loaded and traced: what starting
costs is in theme `fleet`'s whole jobs. Two photographs stand for a photograph and a class image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ceiling import count_flops
from benchmarks.gated_runs import make_config
from benchmarks.measure import BenchmarkCase, compare_sides, make_timed
from benchmarks.theme import BenchmarkSettings
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.slots.slot_trainer import SlotTrainer

OVERRIDES = ("train.batch_size=2", "prior.count=0", "prior.folder=null", "train.text_encoder=false")
BARS = {32: 1.6}


def compare_steps(
    setting: BenchmarkSettings, folder: Path, num_subjects: int, num_steps: int, pairs: int
) -> dict[str, Any]:
    """A case: `num_steps` of each of `num_subjects` a turn."""
    config = make_config(folder, setting, "lora-steps", 1, *OVERRIDES)
    case = BenchmarkCase(
        f"steps, {num_subjects} subjects",
        "warm",
        num_subjects * num_steps,
        "subject-steps",
        BARS.get(num_subjects),
    )
    run_ours = make_batched_training_steps(config, num_subjects, num_steps)
    run_theirs = make_single_training_steps(config, num_subjects * num_steps)
    return compare_sides(case, make_timed(run_ours), make_timed(run_theirs), pairs)


def _make_photograph_dataset(config: Config, components: Components) -> TrainingDataset:
    photographs = read_photographs_for_subject_config(config, config.subject)
    return TrainingDataset(config, components, [photographs], None, (0, 1))


def make_slot_trainer(config: Config, num_subjects: int) -> SlotTrainer:
    """Subjects in all slots; their seeds differ, and so does what each sees."""
    components = load_components(model_directory(config.model.uri))
    for component_network in components.networks.values():
        component_network.requires_grad_(False)
    slot_trainer = SlotTrainer(config, components, num_subjects, config.train.lora.rank)
    for seed in range(num_subjects):
        subject_config = config.model_copy(update={"seed": seed})
        slot_trainer.join(subject_config, _make_photograph_dataset(subject_config, components))
    return slot_trainer


def make_batched_training_steps(
    config: Config, num_subjects: int, num_steps: int
) -> Callable[[], None]:
    """Steps of all subjects in one batch, with all that goes with one but storage."""
    slot_trainer = make_slot_trainer(config, num_subjects)

    def take_steps() -> None:
        for _ in range(num_steps):
            for subject, metric_values in slot_trainer.step().values.items():
                subject.build_metrics_record(subject.step, metric_values.tolist())

    return take_steps


def make_single_training_steps(config: Config, num_steps: int) -> Callable[[], None]:
    """The step of a run alone, one after another: the product's module, less Lightning's loop."""
    components = load_components(model_directory(config.model.uri))
    apply_train_method(config, components)
    dataset, module = (
        _make_photograph_dataset(config, components),
        DreamBoothModule(config, components),
    )
    optimizer_setup: Any = module.configure_optimizers()
    optimizer, lr_scheduler = (
        optimizer_setup["optimizer"],
        optimizer_setup["lr_scheduler"]["scheduler"],
    )
    step = 0

    def take_steps() -> None:
        nonlocal step
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            loss, _ = module.compute_loss(dataset.make_batch(step))
            loss.backward()  # type: ignore[no-untyped-call]
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            lr_scheduler.step()
            loss.item()
            step += 1

    return take_steps


def count_step_flops(config: Config) -> int:
    """Operations of one step of one subject, forward and backward."""
    # So short a training is not traced: a trace's operations are not counted.
    train_config = config.train.model_copy(update={"steps": 1})
    slot_trainer = make_slot_trainer(config.model_copy(update={"train": train_config}), 1)
    return count_flops(slot_trainer.step)
