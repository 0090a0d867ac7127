"""What a run in a slot computes beside its steps: validation losses, and images of its prompts.

Of each subject by itself, with the numbers of a run alone; the batch waits meanwhile.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.callbacks.samples import is_sample_due, sample_prompt_images
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.validation import Validation, ValidationSet
from dreambooth_ray.training.prediction_errors import PredictionErrorCalculator
from dreambooth_ray.training.slots.slot_subject import SlotSubject
from dreambooth_ray.training.slots.solo_network import SoloNetwork, SoloNetworkCache

Images = list[tuple[str, np.ndarray]]


class SubjectEvaluation:
    """Of one subject. Its failures end nothing: they are side work."""

    def __init__(
        self, networks: SoloNetworkCache, validation: Validation | None, side_work: SideWork
    ) -> None:
        """networks: of the worker; validation: where the subject has one"""
        self._networks, self._validation, self._side_work = networks, validation, side_work

    def validate(self, subject: SlotSubject) -> dict[str, float]:
        """The metrics of the step just taken; none if it has no validation, or that failed."""
        if self._validation is None or not self._validation.is_due(subject.step):
            return {}
        return self._validation.validate(
            subject.step, partial(self._compute_validation_losses, subject)
        )

    def _compute_validation_losses(
        self, subject: SlotSubject, validation_set: ValidationSet
    ) -> dict[str, float] | None:
        def compute_losses_of_set() -> dict[str, float]:
            solo_network = self._load_solo_network(subject)
            validation_batches = validation_set.make_all_batches()
            validation_prediction_errors = torch.cat(
                [
                    _compute_errors(subject, solo_network, validation_batch)
                    for validation_batch in validation_batches
                ]
            )
            return validation_set.average_errors_by_noise_level(
                validation_set.select_example_errors(validation_prediction_errors)
            )

        return self._side_work.run("validation", compute_losses_of_set, None)

    @property
    def has_stalled(self) -> bool:
        """Whether the subject has got no better for as long as its configuration bears."""
        return self._validation is not None and self._validation.has_stalled

    def sample(self, subject: SlotSubject) -> Images:
        """Each sample prompt and its image, (H, W, 3) uint8; none if it is not time, or failed."""
        config = subject.config
        if not is_sample_due(config, subject.step):
            return []
        no_images: Images = []
        return self._side_work.run(
            "sampling",
            lambda: sample_prompt_images(config, self._load_solo_network(subject).components),
            no_images,
        )

    def _load_solo_network(self, subject: SlotSubject) -> SoloNetwork:
        return self._networks.load(subject.config, subject.view_bundle_weights())


@torch.no_grad()
def _compute_errors(subject: SlotSubject, network: SoloNetwork, batch: Batch) -> Tensor:
    """(B,) errors, on the CPU."""
    error_calculator = PredictionErrorCalculator(
        subject.config, network.components, network.forwards
    )
    device = network.components.denoiser.device
    return error_calculator.compute_errors(batch.on_device(device)).cpu()
