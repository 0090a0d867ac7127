"""The one typed configuration tree. Frozen; unknown keys are errors."""

from typing import Any

from pydantic import Field, model_validator

from dreambooth_ray.config.base_model import ModelConfig
from dreambooth_ray.config.captions import CaptionsConfig
from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.config.machines import (
    CheckpointConfig,
    ClusterConfig,
    MemoryConfig,
    StorageConfig,
)
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.section import ID_PATTERN, Section, Template
from dreambooth_ray.config.training import (
    IdentifierConfig,
    LossConfig,
    SubjectConfig,
    TrackingConfig,
    TrainConfig,
    ValidationConfig,
)


class SampleConfig(SamplingParams):
    """Sample images for TensorBoard while training."""

    every: int = Field(
        0, ge=0, description="steps between samples; 0 draws none; of checkpoints where sharded"
    )
    prompts: tuple[Template, ...] = ("a {identifier} {class_noun}",)

    @model_validator(mode="after")
    def _there_is_something_to_sample(self) -> "SampleConfig":
        if self.every and not self.prompts:
            raise ValueError(
                f"sample.every={self.every} and sample.prompts is an empty list; give a prompt"
            )
        return self


class Config(Section):
    """Everything a run depends on."""

    run_id: str | None = Field(
        None, pattern=ID_PATTERN, description="name in storage; none makes a new one"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="start of every random number")
    model: ModelConfig = ModelConfig()
    subject: SubjectConfig
    subjects: tuple[SubjectConfig, ...] = Field(
        (), description="several in one run; `subject` is then the first"
    )
    identifier: IdentifierConfig = IdentifierConfig()
    captions: CaptionsConfig = CaptionsConfig()
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()
    choice: ChoiceConfig = ChoiceConfig()
    sample: SampleConfig = SampleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    memory: MemoryConfig = MemoryConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="before")
    @classmethod
    def _set_subject_from_subjects(cls, values: Any) -> Any:
        match values:
            case {"subjects": [first, *_]} if not values.get("subject"):
                return {**values, "subject": first}
        return values

    @model_validator(mode="after")
    def _subjects_differ(self) -> "Config":
        if self.subjects and self.subjects[0] != self.subject:
            raise ValueError("subject and subjects[0] differ; give subjects alone")
        identifiers = [subject.identifier for subject in self.all_subjects]
        if len(set(identifiers)) < len(identifiers):
            raise ValueError(
                f"subjects: identifiers {', '.join(identifiers)} are not all different; "
                "each subject needs its own"
            )
        return self

    @model_validator(mode="after")
    def _tags_hold_identifiers_whole(self) -> "Config":
        self.captions.refuse_separator_in_identifiers(
            self.word(subject) for subject in self.all_subjects
        )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> "Config":
        if not (self.train.unet or self.train.text_encoder or self.identifier.kind == "learned"):
            raise ValueError(
                "train.unet=false and train.text_encoder=false leave nothing to train; "
                "set one of them true, or identifier.kind=learned"
            )
        if self.prior.keeps_output and not (self.train.unet or self.train.text_encoder):
            raise ValueError(
                f"prior.kind={self.prior.kind}: a word alone is learnt, and what the model makes "
                "of captions without it can't change; take prior.kind=images"
            )
        if self.train.weight_dtype == "bfloat16" and not (
            self.train.unet or self.train.text_encoder
        ):
            raise ValueError(
                "train.weight_dtype=bfloat16: a word alone is learnt, which stays in float32; "
                "leave it out"
            )
        if self.identifier.lr and self.train.optimizer == "prodigy":
            raise ValueError(
                "identifier.lr: train.optimizer=prodigy takes one rate for all; unset it"
            )
        return self

    @model_validator(mode="after")
    def _convert_train_images_to_steps(self) -> "Config":
        train = self.train
        if train.images is None:
            return self
        steps = -(-train.images // self.total_images_per_step)
        if "steps" in train.model_fields_set and train.steps != steps:
            raise ValueError(
                f"train.images={train.images} is {steps} steps of {self.total_images_per_step} "
                f"images, and train.steps={train.steps} says otherwise; give one of the two"
            )
        return self.model_copy(update={"train": train.model_copy(update={"steps": steps})})

    @model_validator(mode="after")
    def _check_device_support(self) -> "Config":
        if self.cluster.gpus:
            return self
        if self.train.precision == "16-mixed":
            raise ValueError(
                "train.precision=16-mixed needs a GPU, CPUs don't train in half precision; set "
                "train.precision=bf16-mixed or 32, or cluster.gpus=true"
            )
        if self.train.optimizer == "adamw8bit":
            raise ValueError(
                "train.optimizer=adamw8bit (bitsandbytes) needs CUDA; set train.optimizer=adamw, "
                "or cluster.gpus=true"
            )
        return self

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> "Config":
        quantization, train = self.model.quantization, self.train
        if quantization == "none":
            return self
        obstacle = None
        if train.method != "lora":
            obstacle = f"train.method={train.method} trains the weights themselves"
        elif train.lora.dora:
            obstacle = "train.lora.dora needs the norms of the weights"
        elif train.lora.kind != "lora":
            obstacle = f"train.lora.kind={train.lora.kind} is for layers that are not quantized"
        elif train.strategy != "ddp":
            obstacle = f"train.strategy={train.strategy} shards the weights"
        elif train.compile != "none":
            obstacle = f"train.compile={train.compile} was not tried with it"
        if obstacle:
            raise ValueError(
                f"model.quantization={quantization} and {obstacle}; set model.quantization=none, "
                "or train.method=lora of kind lora without dora, with train.strategy=ddp and "
                "train.compile=none"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> "Config":
        worker_range, batch_size = self.cluster.span, self.train.batch_size
        for num_workers in range(worker_range.min, worker_range.max + 1):
            if batch_size % num_workers:
                raise ValueError(
                    f"train.batch_size={batch_size} can't be shared evenly by {num_workers} "
                    f"workers, which cluster.workers={self.cluster.workers_text} allows; make "
                    "the one a multiple of the other"
                )
        worker_batch_size = batch_size // worker_range.max
        if worker_batch_size % self.train.accumulate:
            raise ValueError(
                f"train.accumulate={self.train.accumulate} can't part a worker's "
                f"{worker_batch_size} "
                "photographs a step (train.batch_size / cluster.workers) evenly; "
                "take a number that divides it"
            )
        if 0 < self.num_class_images < self.train.batch_size or (
            self.prior.num_images and self.num_class_images <= 0
        ):
            num_held_out = self.prior.num_images - self.num_class_images
            held_out_text = f" less validation.class_images={num_held_out}" if num_held_out else ""
            raise ValueError(
                f"prior.count={self.prior.num_images}{held_out_text} is below train.batch_size="
                f"{self.train.batch_size}; a step needs that many different class images"
            )
        return self

    @model_validator(mode="after")
    def _check_ema_strategy(self) -> "Config":
        train = self.train
        if train.strategy == "ddp":
            return self
        if train.ema_decay:
            raise ValueError(
                f"train.ema_decay needs train.strategy=ddp: {train.strategy} has no worker with "
                "whole weights; unset it, or take ddp"
            )
        return self

    def count_accumulation_parts(self, num_workers: int) -> int:
        """In how many parts each of `num_workers` computes its share of a step.

        No part is larger than with cluster.workers at its most.
        """
        worker_batch_size = self.train.batch_size // num_workers
        max_microbatch_size = (
            self.train.batch_size // self.cluster.span.max // self.train.accumulate
        )
        return next(
            num_parts
            for num_parts in range(1, worker_batch_size + 1)
            if worker_batch_size % num_parts == 0
            and worker_batch_size // num_parts <= max_microbatch_size
        )

    @property
    def num_workers_and_actors(self) -> int:
        """Training workers, prior actors and, where checkpoints are evaluated, one for that."""
        num_evaluators = 1 if self.choice.rule == "best" else 0
        return self.cluster.span.max + self.prior.span.max + num_evaluators

    @property
    def total_images_per_step(self) -> int:
        """Photographs and class images that one optimizer step sees, over all workers."""
        return self.train.batch_size * (2 if self.prior.num_images else 1)

    @property
    def num_class_images(self) -> int:
        """Class images that are trained on: all but those kept for validation."""
        num_held_out_images = (
            self.validation.class_images if self.validation.every and self.prior.num_images else 0
        )
        return self.prior.num_images - num_held_out_images

    @property
    def all_subjects(self) -> tuple[SubjectConfig, ...]:
        """The subjects of this run, one or several."""
        return self.subjects or (self.subject,)

    @property
    def instance_prompt(self) -> str:
        """Caption of a photograph of the first subject that has none of its own."""
        return self.instance_prompts(self.subject)[0]

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """Prompts of the class images, in turns: those of every subject's class."""
        prompts = [self.fill(t, s) for s in self.all_subjects for t in self.class_templates]
        return tuple(dict.fromkeys(prompts))

    @property
    def class_templates(self) -> tuple[str, ...]:
        """prior.prompt as several."""
        prompt = self.prior.prompt
        return (prompt,) if isinstance(prompt, str) else prompt

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """Prompts of the sample images, for every subject."""
        prompts = [
            self.fill(template, subject)
            for subject in self.all_subjects
            for template in self.sample.prompts
        ]
        return tuple(dict.fromkeys(prompts))

    def instance_prompts(self, subject: SubjectConfig) -> tuple[str, ...]:
        """Captions of a subject's photographs that have none of their own."""
        return tuple(
            self.fill(template, subject) for template in subject.prompts or (self.train.prompt,)
        )

    def word(self, subject: SubjectConfig) -> str:
        """What stands for a subject in a prompt: its identifier, in brackets if learned."""
        identifier = subject.identifier
        is_learned = self.identifier.kind == "learned" and not identifier.startswith("<")
        return f"<{identifier}>" if is_learned else identifier

    def fill(self, template: str, subject: SubjectConfig) -> str:
        """A template with {identifier} and {class_noun} of a subject."""
        filled_text = template.replace("{identifier}", self.word(subject))
        return filled_text.replace("{class_noun}", subject.class_noun)
