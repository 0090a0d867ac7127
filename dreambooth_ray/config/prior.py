"""What is configured of keeping what the model knows: class images, and its own output."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dreambooth_ray.config.machines import CountRange
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.section import PathText, Template


class PriorConfig(SamplingParams):
    """What keeps the model's knowledge of the class.

    Images that the base model makes (Ruiz et al. 2023), or its output on the photographs
    themselves, under captions without the identifier.
    """

    kind: Literal["images", "output", "both"] = Field(
        "images", description="what is kept: class images, the base model's output, or both"
    )
    output_weight: float = Field(
        5.0, ge=0, description="weight of the loss that keeps the base model's output"
    )
    captions: Literal["stripped", "class"] | tuple[Template, ...] = Field(
        "stripped",
        description="under which its output is kept: the image's own without the identifier, "
        "those of prior.prompt, or a list",
    )
    count: int = Field(
        100,
        ge=0,
        description="class images to train on, made in whole batches of prior.batch_size; 0 makes "
        "none, and so does kind output",
    )
    folder: PathText | None = Field(
        None, description="your own class photographs, instead of drawn"
    )
    stream: bool = Field(True, description="train while they are still being drawn")
    actors: int | CountRange = Field(1, description="Ray actors that draw them; or {min, max}")
    num_cpus: float = Field(1.0, ge=0, description="CPU cores of an actor, by Ray's counting")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of an actor, fractions allowed; by cluster.gpus if not given"
    )
    resources: dict[str, float] = Field({}, description="Ray custom resources of an actor")
    weight: float = Field(1.0, ge=0, description="lambda: weight of the loss over class images")
    prompt: Template | tuple[Template, ...] = Field(
        "a {class_noun}", description="{class_noun} is filled in; several take turns"
    )
    batch_size: int = Field(8, ge=1, le=1024, description="images an actor draws at once")

    @property
    def keeps_output(self) -> bool:
        """Whether the base model's output is kept."""
        return self.kind != "images"

    @property
    def num_images(self) -> int:
        """Class images of a run: `count`, where they are what is kept."""
        return 0 if self.kind == "output" else self.count

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """Of the losses beside the subject's: over class images, then of the output."""
        loss_weights_by_kind = {"images": (self.weight,), "output": (self.output_weight,)}
        return loss_weights_by_kind.get(self.kind, (self.weight, self.output_weight))

    @property
    def span(self) -> CountRange:
        """actors as bounds."""
        if isinstance(self.actors, CountRange):
            return self.actors
        return CountRange(min=1, max=self.actors)

    @field_validator("captions", mode="before")
    @classmethod
    def _check_captions_choice(cls, captions: Any) -> Any:
        if isinstance(captions, str) and captions not in ("stripped", "class"):
            raise ValueError(
                "take stripped, class, or a list: prior.captions='[\"a {class_noun}\"]'"
            )
        return captions

    @model_validator(mode="after")
    def _check_kind_supports_settings(self) -> "PriorConfig":
        if self.kind == "both" and not self.count:
            raise ValueError(
                "prior.kind=both keeps class images too, and prior.count=0 makes none; take "
                "prior.kind=output"
            )
        if self.kind == "output" and self.folder:
            raise ValueError(
                f"prior.folder={self.folder!r} has class images, and prior.kind=output trains on "
                "none; leave it out, or take prior.kind=both"
            )
        if not self.captions:
            raise ValueError("prior.captions is an empty list; give at least one")
        return self

    @model_validator(mode="after")
    def _some_actor_and_prompt(self) -> "PriorConfig":
        if isinstance(self.actors, int) and self.actors < 1:
            raise ValueError(f"prior.actors={self.actors} must be at least 1")
        if not self.prompt:
            raise ValueError("prior.prompt is an empty list; give at least one")
        return self
