"""What is configured of class images."""

from pydantic import Field, model_validator

from dreambooth_ray.config.machines import Span
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.section import Text


class PriorConfig(SamplingParams):
    """Class images, made by the base model, that keep its knowledge of the class."""

    count: int = Field(100, ge=0, description="class images; 0 trains without prior preservation")
    folder: Text | None = Field(None, description="your own class photographs, instead of drawn")
    stream: bool = Field(True, description="train while they are still being drawn")
    actors: int | Span = Field(1, description="Ray actors that draw them; or {min, max}")
    num_cpus: float = Field(1.0, ge=0, description="CPU cores of an actor, by Ray's counting")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of an actor, fractions allowed; by cluster.gpus if not given"
    )
    resources: dict[str, float] = Field({}, description="Ray custom resources of an actor")
    weight: float = Field(1.0, ge=0, description="lambda of the prior-preservation loss")
    prompt: Text | tuple[Text, ...] = Field(
        "a {class_noun}", description="{class_noun} is filled in; several take turns"
    )
    batch_size: int = Field(8, ge=1, description="images an actor draws at once")

    @property
    def span(self) -> Span:
        """actors as bounds."""
        if isinstance(self.actors, Span):
            return self.actors
        return Span(min=1, max=self.actors)

    @model_validator(mode="after")
    def _some_actor_and_prompt(self) -> "PriorConfig":
        if isinstance(self.actors, int) and self.actors < 1:
            raise ValueError(f"prior.actors={self.actors} must be at least 1")
        if not self.prompt:
            raise ValueError("prior.prompt is an empty list; give at least one")
        return self
