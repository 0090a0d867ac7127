"""Adapters of several subjects, stepped by one forward and backward over shared frozen weights.

What a subject learns depends on its own seed and steps only: rows of one slot meet no numbers of
another. A batch has as many rows however many slots are taken, so who comes and goes changes no bit
of the others.

Legend: K slots, b rows of a slot, P numbers of the largest adapter.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.models.activation_checkpointing import checkpoint_activations
from dreambooth_ray.models.adapter_stack import TrainingAdapterStack, make_adapter
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.frozen_copy import copy_base_network
from dreambooth_ray.models.precision import cast_frozen_layers, use_fast_float32
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.prediction_errors import (
    autocast_networks,
    combine_losses,
    compute_weighted_sample_errors,
)
from dreambooth_ray.training.recorded_forwards import StepForwards
from dreambooth_ray.training.slots.joined_batch import JoinedBatch, join_batches
from dreambooth_ray.training.slots.joined_forward import predict_joined
from dreambooth_ray.training.slots.slot_subject import AdapterTrainingState, SlotSubject
from dreambooth_ray.training.slots.solo_network import SoloNetworkCache

# New adapters that are remembered: most subjects of a fleet have one seed and one rank.
_KEPT_ADAPTERS = 4


class SubjectBatchMismatchError(ConfigError):
    """A subject that can't share this batch, and can be trained by itself."""


@dataclass
class SlotStepResult:
    """What became of each subject in one step of the batch.

    values: (3,) or (4,) on the device: the losses as `combine_losses` parts them, and the norm of
    the gradient from before clipping; failures: of subjects whose next batch can't be made
    """

    values: dict[SlotSubject, Tensor] = field(default_factory=dict)
    failures: dict[SlotSubject, DreamBoothError] = field(default_factory=dict)


class SlotTrainer:
    """A batch of K slots. Runs of one `make_shared_batch_key` can join it.

    solo_networks: for what is computed for one subject alone
    """

    def __init__(
        self,
        config: Config,
        components: Components,
        num_slots: int,
        rank: int,
        device: torch.device | None = None,
    ) -> None:
        """config: of any run of the group; rank: the largest that a slot has room for

        components: frozen, and left as they are
        raises: ConfigError for layers that can't carry the adapters of several subjects
        """
        self.config, self._components = config, components
        self._new_adapters: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._device = device or torch.device("cpu")
        self._in_one_forward = self._device.type == "cuda"
        self._functions, self._denoiser = components.functions, components.denoiser
        self._process = self._functions.forward_process(components)
        network: Any = copy_base_network(self._denoiser, shares_weights=True)
        cast_frozen_layers(network, config.train.precision)
        network = network.to(self._device).train()
        use_fast_float32(self._device)
        _refuse_dropout(network)
        if self._device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        # As it is without anybody's adapter; its weights are the same memory.
        frozen_network: Any = copy_base_network(network, shares_weights=True)
        self.solo_networks = SoloNetworkCache(replace(components, denoiser=frozen_network))
        if config.train.gradient_checkpointing:
            checkpoint_activations(network, ())
        largest_lora_config = config.train.lora.model_copy(update={"rank": rank})
        self._stack = TrainingAdapterStack(
            network, self.make_adapter(largest_lora_config, 0), num_slots
        )
        self._forwards = StepForwards(
            config,
            self._functions,
            network,
            {},
            frozen_network if config.prior.keeps_output else None,
        )
        self._subjects: dict[int, SlotSubject] = {}
        self._batch_key: Any = None

    def make_adapter(self, lora_config: LoraConfig, seed: int) -> dict[str, Tensor]:
        """The weights that a run alone begins with, by peft's names in the order of training.

        Not to be changed: subjects of one seed begin with the same.
        """
        adapter_key = lora_config.model_dump_json(), seed
        if adapter_key not in self._new_adapters:
            if len(self._new_adapters) >= _KEPT_ADAPTERS:
                self._new_adapters.pop(next(iter(self._new_adapters)))
            self._new_adapters[adapter_key] = self._initialize_adapter_weights(lora_config, seed)
        return self._new_adapters[adapter_key]

    def _initialize_adapter_weights(self, lora_config: LoraConfig, seed: int) -> dict[str, Tensor]:
        target_modules = lora_config.target_modules or self._components.family.lora_targets
        return make_adapter(self._denoiser, lora_config, target_modules, seed)

    @property
    def num_free_slots(self) -> int:
        """Slots that nobody is in."""
        return len(self._stack) - len(self._subjects)

    @property
    def subjects(self) -> tuple[SlotSubject, ...]:
        """Those in slots, in their order."""
        return tuple(subject for _, subject in sorted(self._subjects.items()))

    def join(
        self, config: Config, dataset: TrainingDataset, state: AdapterTrainingState | None = None
    ) -> SlotSubject:
        """Put a subject into the first free slot.

        dataset: of `config`, for one worker; state: of a checkpoint; without, it begins
        raises: ConfigError if it does not fit what the batch was made for
        """
        lora_config = config.train.lora
        if lora_config.rank > self._stack.rank:
            raise ConfigError(
                f"train.lora.rank={lora_config.rank} is above {self._stack.rank}, which the slots "
                "were made for"
            )
        self._check_conditioning(dataset)
        slot = next(s for s in range(len(self._stack)) if s not in self._subjects)
        if state is None:
            state = AdapterTrainingState(0, self.make_adapter(lora_config, config.seed))
        subject = SlotSubject(config, dataset, self._stack, slot, state)
        self._subjects[slot] = subject
        return subject

    def _check_conditioning(self, dataset: TrainingDataset) -> None:
        """raises: ConfigError where captions are of more windows than others in the batch have"""
        conditioning_batch_key = self._functions.batch_key(dataset.example_conditioning)
        if not self._subjects:
            self._batch_key = conditioning_batch_key
        elif conditioning_batch_key != self._batch_key:
            raise SubjectBatchMismatchError(
                "its captions fill another number of windows than those of the subjects that are "
                "in slots"
            )

    def leave(self, subject: SlotSubject) -> None:
        """Make a subject's slot free."""
        del self._subjects[subject.slot]
        self._stack.clear_slot_adapter(subject.slot)

    def step(self) -> SlotStepResult:
        """One optimizer step of every subject in a slot."""
        step_result = SlotStepResult()
        batches: dict[int, Batch] = {}
        for subject in self.subjects:
            try:
                batches[subject.slot] = subject.dataset.make_batch(subject.step)
            except DreamBoothError as error:
                step_result.failures[subject] = error
        if not batches:
            return step_result
        joined = join_batches(
            self._functions,
            batches,
            len(self._stack),
            self._device,
            in_one_forward=self._in_one_forward,
        )
        subjects = [self._subjects[slot] for slot in batches]
        losses_of_subjects = self._compute_losses_and_gradients(joined, subjects)
        for subject, losses in zip(subjects, losses_of_subjects, strict=True):
            grad_norm = subject.update()
            step_result.values[subject] = torch.cat([losses, grad_norm.reshape(1)])
        return step_result

    def _compute_losses_and_gradients(
        self, joined: JoinedBatch, subjects: Iterable[SlotSubject]
    ) -> list[Tensor]:
        """(2,) or (3,) losses of each subject; the gradients of all are in the stack then."""
        noisy_training_latents = self._process.add_noise(joined.latents, joined.noise, joined.times)
        prediction_target = self._process.compute_target(joined.latents, joined.noise, joined.times)
        with autocast_networks(self.config.train.precision, self._device):
            prediction, preserved_output = predict_joined(
                self._forwards, joined, noisy_training_latents
            )
        subject_losses, part_losses = [], []
        for subject in subjects:
            row_slice, num_photographs = joined.rows_of(subject.slot), joined.num_photographs
            compute_weighted_errors = partial(
                compute_weighted_sample_errors, self._process, subject.config.loss
            )
            weighted_errors = compute_weighted_errors(
                prediction[row_slice], prediction_target[row_slice], joined.times[row_slice]
            )
            preserved_output_errors = None
            if preserved_output is not None:
                preserved_row_slice = joined.preserved_rows_of(subject.slot)
                preserved_output_errors = compute_weighted_errors(
                    preserved_output.prediction[preserved_row_slice],
                    preserved_output.target[preserved_row_slice],
                    joined.times[row_slice][:num_photographs],
                )
            loss, loss_parts = combine_losses(
                subject.config.prior, weighted_errors, preserved_output_errors, num_photographs
            )
            subject_losses.append(loss)
            part_losses.append(loss_parts.detach())
        torch.stack(subject_losses).sum().backward()  # type: ignore[no-untyped-call]
        self._stack.gather_layer_gradients()
        return part_losses


def _refuse_dropout(network: nn.Module) -> None:
    """raises: ConfigError for a denoiser that draws at random: all slots would draw together"""
    for layer_name, layer in network.named_modules():
        if isinstance(layer, nn.Dropout) and layer.p > 0:
            raise ConfigError(
                f"model.uri: its denoiser has dropout ({layer_name}), which several subjects "
                "in one batch can't have each of their own; train them without slots"
            )
