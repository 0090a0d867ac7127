"""Settings of the evaluation beside a training."""

from typing import Literal

from pydantic import Field, model_validator

from dreambooth_ray.config.section import PathText, Section


class ChoiceConfig(Section):
    """Which checkpoint becomes the bundle."""

    rule: Literal["last", "best"] = Field(
        "last",
        description="best: checkpoints are evaluated, by another worker where the cluster has room "
        "for one, else by the first of the training between two steps",
    )
    protocol: PathText | None = Field(
        None,
        description="a shipped protocol, or a YAML file; null is the model's own choice: "
        "toyworld-brief of the toys, brief of others",
    )
    max_evaluations: int = Field(
        8,
        ge=0,
        description="at most so many of a run, spread over its steps; checkpoints between them are "
        "not evaluated; 0 evaluates all",
    )
    drift: Literal["pres", "drift"] = Field(
        "pres", description="what counts as drift; drift is other classes lost, of toy protocols"
    )
    max_drift: float = Field(
        0.4, description="of the best, which is the most faithful up to it; by the encoder's scale"
    )
    patience: int = Field(
        0, ge=0, description="evaluations without a gain that end the run; 0 never does"
    )
    min_gain: float = Field(0.01, ge=0, description="what counts as one, in fidelity or drift")

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> "ChoiceConfig":
        if self.patience and self.rule == "last":
            raise ValueError(
                f"choice.patience={self.patience} needs evaluations; set choice.rule=best"
            )
        return self
