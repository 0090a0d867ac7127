"""The adapters of train.method=lora: kind, layers, ranks and scales. No torch."""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dreambooth_ray.config.section import Section, Text

AdapterKind = Literal["lora", "loha", "lokr"]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0)]


class LoraConfig(Section):
    """The adapter of train.method=lora."""

    kind: AdapterKind = Field(
        "lora",
        description="a product of two matrices, of two such products elementwise (loha), or a "
        "Kronecker product (lokr; both of LyCORIS)",
    )
    rank: int = Field(8, ge=1, description="inner dimension of an adapter, at most a layer's width")
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank; null is rank")
    rank_pattern: dict[str, Rank] = Field(
        {},
        description="rank, from 1, by the end of a layer's name, a regular expression: {conv1: 4}",
    )
    alpha_pattern: dict[str, Alpha] = Field({}, description="alpha likewise, above 0")
    target_modules: tuple[Text, ...] | None = Field(
        None, min_length=1, description="layers of the denoiser; null is the model's own choice"
    )
    text_target_modules: tuple[Text, ...] | None = Field(
        None, min_length=1, description="of the text encoders"
    )
    dora: bool = Field(False, description="learn a layer's magnitude apart from its direction")
    rslora: bool = Field(False, description="scale is alpha / sqrt(rank) (arXiv 2312.03732)")
    loraplus_lr_ratio: float | None = Field(
        None, ge=1, description="LoRA+: rate of the second matrix over that of the first; 16"
    )
    lokr_factor: int | None = Field(
        None, ge=2, description="size of LoKr's first factor; null is near the square root"
    )

    @property
    def resolved_alpha(self) -> float:
        """alpha, resolved."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """Factor of an adapter's product, where no pattern says otherwise."""
        return self.resolved_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def resolved_alpha_pattern(self) -> dict[str, float]:
        """alpha by pattern; where alpha is the rank, that of a layer with a rank of its own too."""
        ranks_by_pattern = self.rank_pattern if self.alpha is None else {}
        return self.alpha_pattern | {
            pattern: float(rank)
            for pattern, rank in ranks_by_pattern.items()
            if pattern not in self.alpha_pattern
        }

    @model_validator(mode="after")
    def _check_kind_supports_settings(self) -> "LoraConfig":
        lora_only_settings = {
            "dora=true": self.dora,
            "rslora=true": self.rslora,
            "loraplus_lr_ratio": self.loraplus_lr_ratio is not None,
        }
        lora_only_setting = next(
            (name for name, is_set in lora_only_settings.items() if is_set), None
        )
        if self.kind != "lora" and lora_only_setting:
            raise ValueError(
                f"train.lora.{lora_only_setting} is for train.lora.kind=lora, and it is "
                f"{self.kind}; unset one of the two"
            )
        if self.kind != "lokr" and self.lokr_factor is not None:
            raise ValueError(
                f"train.lora.lokr_factor={self.lokr_factor} is for train.lora.kind=lokr, and it is "
                f"{self.kind}; unset one of the two"
            )
        return self

    @model_validator(mode="after")
    def _patterns_are_expressions(self) -> "LoraConfig":
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, key):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"train.lora.{key}: {pattern!r} is no regular expression: {error}; take "
                        "what names of layers end with, as conv1 or up_blocks.1.*to_q"
                    ) from error
        return self


def matches_pattern(pattern: str, layer: str) -> bool:
    """Whether a pattern is for a layer, as peft looks it up: by the end of its name."""
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None
