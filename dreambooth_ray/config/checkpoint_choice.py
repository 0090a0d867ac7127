"""Settings of the evaluation beside a training."""

from typing import Literal

from pydantic import Field, model_validator

from dreambooth_ray.config.section import PathText, Section


class ChoiceConfig(Section):
    """Which checkpoint becomes the bundle."""

    rule: Literal["last", "best"] = Field(
        "last", description="best: every checkpoint is evaluated on a worker beside the training"
    )
    protocol: PathText = Field("toyworld-brief", description="a shipped protocol, or a YAML file")
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
