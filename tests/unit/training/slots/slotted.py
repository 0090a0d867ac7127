"""Subjects in slots, in one process, without Ray and storage."""

from pathlib import Path

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.validation import Validation, ValidationSet
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.datasets import make_datasets
from dreambooth_ray.training.slots.slot_subject import AdapterTrainingState, SlotSubject
from dreambooth_ray.training.slots.slot_trainer import SlotTrainer
from dreambooth_ray.training.slots.subject_evaluation import SubjectEvaluation
from tests.unit.training.fitted import SMALL

LORA = ("train.method=lora", "train.lora.rank=2")
Curve = list[dict[str, float]]


def make_config(photos: Path, *overrides: str) -> Config:
    base = f"run_id: one\nsubject: {{photos: {photos}, class_noun: robot}}"
    return parse_config(base, "x", [*SMALL, *LORA, *overrides])


class Slotted:
    """A batch of slots, and the curve of each subject that was in one."""

    def __init__(
        self, model: Path, photos: Path, priors: Store | None, num_slots: int, *shared: str,
        rank: int = 2,
    ) -> None:  # fmt: skip
        """shared: overrides of all subjects; rank: the largest"""
        self._photos, self._priors, self._shared = photos, priors, shared
        self.components: Components = load_components(model)
        for network in self.components.networks.values():
            network.requires_grad_(False)
        self.trainer = SlotTrainer(make_config(photos, *shared), self.components, num_slots, rank)
        self._datasets: dict[tuple[str, ...], tuple[TrainingDataset, ValidationSet | None]] = {}
        self._side_work = SideWork(Store("memory://slotted"))
        self.evaluations: dict[SlotSubject, SubjectEvaluation] = {}
        self.curves: dict[str, Curve] = {}
        self.names: dict[SlotSubject, str] = {}

    def join(
        self, name: str, *overrides: str, state: AdapterTrainingState | None = None
    ) -> SlotSubject:
        config = make_config(self._photos, *self._shared, *overrides)
        # They depend on the configuration alone.
        if overrides not in self._datasets:
            self._datasets[overrides] = self._make_datasets(config)
        dataset, validation_set = self._datasets[overrides]
        subject = self.trainer.join(config, dataset, state)
        validation = Validation(config, validation_set, []) if validation_set else None
        self.evaluations[subject] = SubjectEvaluation(
            self.trainer.solo_networks, validation, self._side_work
        )
        self.names[subject] = name
        self.curves.setdefault(name, [])
        return subject

    def _make_datasets(self, config: Config) -> tuple[TrainingDataset, ValidationSet | None]:
        count = config.prior.num_images
        priors = PriorSet(self._priors, count) if self._priors and count else None
        return make_datasets(config, self.components, priors, (0, 1))

    def step(self) -> None:
        """One step of all; those that are done leave."""
        for subject, values in self.trainer.step().values.items():
            record = subject.build_metrics_record(subject.step, values.tolist())
            evaluation = self.evaluations[subject]
            self.curves[self.names[subject]].append(evaluation.validate(subject) | record)
            if subject.is_done or evaluation.has_stalled:
                self.trainer.leave(subject)

    def run(self) -> dict[str, Curve]:
        """Step until nobody is left."""
        while self.trainer.subjects:
            self.step()
        return self.curves
