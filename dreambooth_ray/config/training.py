"""The sections that say how a subject is learnt."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from dreambooth_ray.config.adapters import LoraConfig
from dreambooth_ray.config.learning_rate_rules import default_rate
from dreambooth_ray.config.optimizers import (
    OptimizerName,
    find_optimizer_obstacle,
    find_rounding_obstacle,
)
from dreambooth_ray.config.section import ID_PATTERN, PathText, Section, Template, Text
from dreambooth_ray.config.training_images import TrainingImagesConfig

# YAML reads 32 as a number.
Precision = Annotated[
    Literal["32", "bf16-mixed", "16-mixed"],
    BeforeValidator(str),
    WithJsonSchema({"enum": [32, "32", "bf16-mixed", "16-mixed"]}),
]


Quantization = Literal["none", "int8", "fp8", "nf4"]


class SubjectConfig(Section):
    """Who is to be learnt."""

    photos: PathText = Field(
        description="folder, or its URI, of 1 to 100 photographs "
        "(JPEG, PNG, WebP, HEIC, AVIF, TIFF)"
    )
    identifier: Text = Field("sks", description="rare word that will stand for the subject")
    class_noun: Text = Field(description="what the subject is: dog, shoe, teapot")
    name: str | None = Field(
        None, pattern=ID_PATTERN, description="served as, newest run first; none is the run_id"
    )
    prompts: tuple[Template, ...] = Field(
        (), description="captions where none is given, one at random; none is train.prompt alone"
    )


class IdentifierConfig(Section):
    """The word that stands for a subject."""

    kind: Literal["rare_word", "learned"] = Field(
        "rare_word",
        description="a word of the vocabulary, or a new one, <sks>, with its own weight",
    )
    lr: float | None = Field(None, gt=0, description="of a learned word; null is train.lr")


class DeepSpeedConfig(Section):
    """ZeRO, of train.strategy=deepspeed."""

    stage: Literal[1, 2, 3] = Field(2, description="shard optimizer; gradients too; weights too")
    offload: bool = Field(False, description="keep the optimizer's state in the host's memory")


class TrainConfig(TrainingImagesConfig):
    """The fine-tuning."""

    method: Literal["full", "lora", "kv"] = Field(
        "full", description="all weights, adapters, or cross-attention keys and values alone"
    )
    lora: LoraConfig = LoraConfig()
    strategy: Literal["ddp", "fsdp2", "deepspeed"] = Field(
        "ddp", description="each worker a whole model, or sharded by PyTorch or by DeepSpeed"
    )
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    unet: bool = Field(True, description="train the denoiser: a UNet or transformer")
    steps: int = Field(400, ge=1, description="optimizer steps")
    batch_size: int = Field(
        2, ge=1, description="photographs a step, over all workers; as many class images"
    )
    images: int | None = Field(
        None, ge=1, description="the budget as images seen, both halves counted; decides steps"
    )
    accumulate: int = Field(
        1, ge=1, description="parts that a worker's share of a step is computed in, for memory"
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw8bit needs CUDA; prodigy finds its rate itself; schedulefree-adamw "
        "learns an average in the place of a schedule; adafactor and lion hold less",
    )
    lr: float = Field(
        5e-6,
        gt=0,
        description="default 1e-4 for lora, 1e-5 for kv, a fifth of each for lion; for prodigy a "
        "factor on its own rate, 1",
    )
    text_encoder_lr: float | None = Field(None, gt=0, description="null is train.lr")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up; linear and cosine fall to zero"
    )
    lr_warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0, description="of the optimizer, decoupled")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    text_encoder: bool = Field(
        True, description="train the text encoder as well; default true for full, else false"
    )
    prompt: Template = Field(
        "a {identifier} {class_noun}", description="caption where none is given"
    )
    flip: bool = Field(False, description="mirror images at random")
    precision: Precision = Field("32", description="of the computation")
    weight_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of trained linear and convolution layers; to bfloat16 steps are rounded at "
        "random, so that small ones count in the mean",
    )
    gradient_checkpointing: bool = Field(False, description="compute twice to hold less")
    compile: Literal["none", "blocks", "whole"] = Field(
        "none", description="torch.compile of the UNet or of its transformer blocks; a minute more"
    )
    deterministic: bool = Field(
        False, description="on a GPU, prefer kernels that give the same numbers each time; slower"
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU, launch a step's kernels at once, where one worker can"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="the bundle gets averaged weights; 0.999 suits most"
    )

    @property
    def holds_unsharded_weights(self) -> bool:
        """Whether a worker holds all weights, in float32, and its forward waits for no other."""
        if self.strategy == "deepspeed":
            return self.deepspeed.stage < 3 and self.precision != "16-mixed"
        return self.strategy == "ddp"

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method_defaults: dict[str, Any] = {"lr": default_rate(values)}
        # Adapters and keys and values are used with the text encoder as it is, unless asked.
        if values.get("method", "full") != "full":
            method_defaults["text_encoder"] = False
        return {**method_defaults, **values}

    @model_validator(mode="after")
    def _check_setting_combinations(self) -> "TrainConfig":
        if self.method == "kv" and self.text_encoder:
            raise ValueError(
                "train.method=kv trains the UNet's cross-attention keys and values alone; "
                "set train.text_encoder=false, or take train.method=full or lora"
            )
        if self.compile != "none" and self.strategy != "ddp":
            raise ValueError(
                f"train.compile={self.compile} needs train.strategy=ddp, where a network is whole; "
                f"with train.strategy={self.strategy} set train.compile=none"
            )
        if self.compile != "none" and not self.has_one_shape:
            multi_shape_setting = (
                "buckets=true" if self.buckets else f"resolution={list(self.sides_px)}"
            )
            raise ValueError(
                f"train.compile={self.compile} is for images of one shape, and "
                f"train.{multi_shape_setting} makes several; set train.compile=none"
            )
        if self.optimizer == "prodigy" and self.method == "lora" and self.lora.loraplus_lr_ratio:
            raise ValueError(
                f"train.lora.loraplus_lr_ratio={self.lora.loraplus_lr_ratio:g}: train.optimizer="
                "prodigy takes one rate for all; unset it, or take another optimizer"
            )
        if self.optimizer == "prodigy" and (self.lr < 0.01 or self.text_encoder_lr):
            raise ValueError(
                f"train.optimizer=prodigy finds the rate itself and takes train.lr={self.lr} as a "
                "factor on it, one for all weights; set train.lr=1 and no train.text_encoder_lr"
            )
        if obstacle := find_optimizer_obstacle(
            self.optimizer, self.strategy, self.lr_schedule, self.ema_decay
        ):
            raise ValueError(obstacle)
        return self

    @model_validator(mode="after")
    def _weights_can_be_rounded(self) -> "TrainConfig":
        if self.weight_dtype == "bfloat16":
            adapter_kind = self.lora.kind if self.method == "lora" else None
            if obstacle := find_rounding_obstacle(
                self.optimizer, self.strategy, self.precision, adapter_kind
            ):
                raise ValueError(
                    f"train.weight_dtype=bfloat16 {obstacle}; or set train.weight_dtype=float32"
                )
        return self


# Of LossConfig: what a model's family chooses where nobody has.
FAMILY_LOSS_KEYS = frozenset({"timesteps"})


class LossConfig(Section):
    """What training minimises."""

    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR weights; 5 is usual")
    huber_delta: float | None = Field(
        None, gt=0, description="errors beyond this count linearly, not squared"
    )
    noise_offset: float = Field(0.0, ge=0, description="deviation of a shift per channel; 0.1")
    zero_terminal_snr: bool = Field(
        False, description="rescale the schedule to end in pure noise; for velocity models"
    )
    caption_dropout: float = Field(0.0, ge=0, le=1, description="share of empty captions")
    timesteps: Literal["uniform", "logit_normal", "mode"] = Field(
        "uniform", description="how noise levels are drawn; mode is for flow matching"
    )
    logit_mean: float = Field(0.0, description="of logit_normal; below 0 favours little noise")
    logit_std: float = Field(1.0, gt=0, description="of logit_normal")
    mode_scale: float = Field(
        1.29, ge=-1, le=1.75, description="of mode; above 0 favours the middle levels"
    )
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = Field(
        "none", description="of errors by noise level, for flow matching (SD 3, arXiv 2403.03206)"
    )


class ValidationConfig(Section):
    """Losses on fixed images, noise and timesteps, so that their curve is smooth."""

    every: int = Field(0, ge=0, description="steps between validations; 0 makes none")
    held_out: int = Field(
        0, ge=0, description="photographs of each subject kept from training, its last by name; "
        "0 looks at those that are trained on"
    )  # fmt: skip
    class_images: int = Field(4, ge=0, description="class images kept from training, the last")
    timesteps: int = Field(
        8, ge=1, le=1000, description="noise levels that each image is looked at with"
    )
    bins: int = Field(4, ge=1, description="ranges of noise level with losses of their own")
    patience: int = Field(
        0, ge=0, description="validations without a new best that end the run; 0 never does"
    )
    min_delta: float = Field(0.0, ge=0, description="what a new best has to be better by")

    @model_validator(mode="after")
    def _bins_divide_timesteps(self) -> "ValidationConfig":
        if self.timesteps % self.bins:
            raise ValueError(
                f"validation.timesteps={self.timesteps} can't be parted into "
                f"validation.bins={self.bins} evenly; make the one a multiple of the other"
            )
        if self.patience and not self.every:
            raise ValueError(
                f"validation.patience={self.patience} needs validations; set validation.every"
            )
        return self


class TrackingConfig(Section):
    """Where metrics go beside metrics.jsonl."""

    loggers: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = Field(
        ("tensorboard",), description="where metrics go; wandb and mlflow are extras to install"
    )
    project: Text = Field("dreambooth", description="wandb's project, mlflow's experiment")
    mlflow_uri: PathText | None = Field(
        None, description="of an mlflow server or a local folder; null is mlflow/ in the run"
    )
