"""The one typed configuration tree. Frozen; unknown keys are errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """Which Stable Diffusion to start from."""

    uri: Text = Field("toyworld", description="'toyworld', or a Stable Diffusion 1.x/2.x directory")


class SubjectConfig(Section):
    """Who is to be learnt."""

    photos: Text = Field(description="folder of 1 to 100 photographs (JPEG, PNG, WebP)")
    identifier: Text = Field("sks", description="rare word that will stand for the subject")
    class_noun: Text = Field(description="what the subject is: dog, shoe, teapot")


class Span(Section):
    """A number that may lie between two bounds."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Span":
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


class PriorConfig(Section):
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
    solver: Literal["ddim", "plms", "euler", "euler_a", "dpmpp_2m"] = "ddim"
    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(3.0, ge=1)
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


class LoraConfig(Section):
    """The adapter of train.method=lora."""

    rank: int = Field(8, ge=1, description="inner dimension of an adapter")
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank; null is rank")
    target_modules: tuple[Text, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="layers of the UNet"
    )
    text_target_modules: tuple[Text, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "out_proj"), min_length=1, description="of the text encoder"
    )
    dora: bool = Field(False, description="learn a layer's magnitude apart from its direction")

    @property
    def scale_alpha(self) -> float:
        """alpha, resolved."""
        return float(self.rank) if self.alpha is None else self.alpha


class TrainConfig(Section):
    """The fine-tuning."""

    method: Literal["full", "lora", "kv"] = Field(
        "full", description="all weights, adapters, or cross-attention keys and values alone"
    )
    lora: LoraConfig = LoraConfig()
    unet: bool = Field(True, description="train the UNet")
    steps: int = Field(400, ge=1, description="optimizer steps")
    batch_size: int = Field(
        2, ge=1, description="photographs a step, over all workers; as many class images"
    )
    lr: float = Field(5e-6, gt=0)
    lr_warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    resolution: int = Field(512, ge=8, description="side of the square training pictures, pixels")
    text_encoder: bool = Field(
        True, description="train the text encoder as well; default true for full, else false"
    )
    prompt: Text = Field("a {identifier} {class_noun}", description="caption where none is given")
    flip: bool = Field(False, description="mirror pictures at random")

    @model_validator(mode="before")
    @classmethod
    def _text_encoder_by_method(cls, given: Any) -> Any:
        # Adapters and keys and values are used with the text encoder as it is, unless asked.
        if isinstance(given, dict) and given.get("method", "full") != "full":
            return {"text_encoder": False, **given}
        return given

    @model_validator(mode="after")
    def _something_to_train(self) -> "TrainConfig":
        if self.method == "kv" and self.text_encoder:
            raise ValueError(
                "train.method=kv trains the UNet's cross-attention keys and values alone; "
                "set train.text_encoder=false, or take train.method=full or lora"
            )
        return self


class SampleConfig(Section):
    """Sample pictures for TensorBoard while training."""

    every: int = Field(0, ge=0, description="steps between samples; 0 draws none")
    prompts: tuple[Text, ...] = ("a {identifier} {class_noun}",)
    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(3.0, ge=1)


class CheckpointConfig(Section):
    """Complete training state, committed to storage."""

    every: int = Field(100, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep")


class ClusterConfig(Section):
    """Where the work runs."""

    address: str | None = Field(None, description="Ray address; none starts a local Ray")
    workers: int = Field(1, ge=1, description="training workers")
    gpus: bool = Field(False, description="one GPU for each worker and each prior actor")
    max_failures: int = Field(3, ge=0, description="restarts of the worker group before giving up")


class StorageConfig(Section):
    """Where runs, checkpoints and class images are kept."""

    uri: Text = "out"


class Config(Section):
    """Everything a run depends on."""

    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelConfig = ModelConfig()
    subject: SubjectConfig
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _something_is_trained(self) -> "Config":
        if not (self.train.unet or self.train.text_encoder):
            raise ValueError(
                "train.unet=false and train.text_encoder=false leave nothing to train; "
                "set one of them true"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> "Config":
        if self.train.batch_size % self.cluster.workers:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} can't be shared evenly by "
                f"cluster.workers={self.cluster.workers}; make the one a multiple of the other"
            )
        if 0 < self.prior.count < self.train.batch_size:
            raise ValueError(
                f"prior.count={self.prior.count} is below train.batch_size="
                f"{self.train.batch_size}; a step needs that many different class images"
            )
        return self

    @property
    def instance_prompt(self) -> str:
        """Caption of a photograph that has none of its own."""
        return self._fill(self.train.prompt)

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """Prompts the class images are drawn from, in turns."""
        given = self.prior.prompt
        return tuple(self._fill(p) for p in ((given,) if isinstance(given, str) else given))

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """Prompts of the sample pictures."""
        return tuple(self._fill(p) for p in self.sample.prompts)

    def _fill(self, template: str) -> str:
        words = template.replace("{identifier}", self.subject.identifier)
        return words.replace("{class_noun}", self.subject.class_noun)
