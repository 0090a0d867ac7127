"""What of the photographs a training sees, and in which shapes."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dreambooth_ray.config.section import Section

MIN_SIDE_PX, MAX_SIDE_PX = 8, 8192
SidePx = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class TrainingImagesConfig(Section):
    """The keys of the section `train` that say what images are made of photographs."""

    resolution: SidePx | Annotated[tuple[SidePx, ...], Field(min_length=1, max_length=8)] = Field(
        512,
        description="side of the square training images, pixels; with buckets, of the square that "
        "no shape is larger than; of several each step takes one",
    )
    buckets: bool = Field(
        False, description="images in shapes near the photographs' own, instead of squares"
    )
    bucket_step_px: int = Field(
        64, ge=8, description="of buckets: what both sides of a shape are multiples of, pixels"
    )
    bucket_max_aspect: float = Field(
        2.0, ge=1, le=4, description="of buckets: the longer side by the shorter, at most"
    )
    crop: Literal["center", "smart", "none"] = Field(
        "center",
        description="what of a photograph is seen: its middle, or where it is most salient; "
        "none is all of it, squeezed into its bucket",
    )

    mask_background: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the loss outside the masks of photographs (photo.mask.png, or their "
        "transparency), 1 inside; null uses no masks",
    )
    mask_background_target: Literal["photograph", "output"] = Field(
        "photograph",
        description="what the loss compares with outside the masks: the photograph, or what the "
        "base model makes of it, so that nothing is learnt there",
    )

    @property
    def sides_px(self) -> tuple[int, ...]:
        """resolution as several, the smallest first."""
        sides = self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)
        return tuple(sorted(sides))

    @property
    def side_px(self) -> int:
        """The largest resolution: of samples, of evaluations, and what memory is needed for."""
        return self.sides_px[-1]

    @property
    def has_one_shape(self) -> bool:
        """Whether all training images are squares of one size."""
        return not self.buckets and len(self.sides_px) == 1

    @property
    def has_background_output_preservation(self) -> bool:
        """Whether the base model's output is kept outside the masks."""
        return self.mask_background_target == "output"

    @field_validator("resolution", mode="before")
    @classmethod
    def _one_or_a_list(cls, resolution: Any) -> Any:
        sides = resolution if isinstance(resolution, list | tuple) else [resolution]
        are_integers = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        are_in_bounds = are_integers and all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in sides)
        if not are_in_bounds or not 1 <= len(sides) <= 8:
            raise ValueError(
                f"give a whole number of pixels from {MIN_SIDE_PX} to {MAX_SIDE_PX}, or a list of "
                "one to eight of them"
            )
        return resolution

    @model_validator(mode="after")
    def _the_background_has_a_weight(self) -> "TrainingImagesConfig":
        if self.has_background_output_preservation and not self.mask_background:
            background_weight_text = "null" if self.mask_background is None else "0"
            raise ValueError(
                "train.mask_background_target=output is for what is outside of masks, and "
                f"train.mask_background={background_weight_text} leaves that out; give a weight "
                "above 0, 1 for one"
            )
        return self

    @model_validator(mode="after")
    def _shapes_can_be_made(self) -> "TrainingImagesConfig":
        sides, bucket_step_px = self.sides_px, self.bucket_step_px
        if len(set(sides)) < len(sides):
            raise ValueError(f"train.resolution={list(sides)} has one twice; give each once")
        if self.crop == "none" and not self.buckets:
            raise ValueError(
                "train.crop=none squeezes photographs into their buckets, and without buckets it "
                "would into squares; set train.buckets=true, or take center or smart"
            )
        unaligned_side = next((side for side in sides if side % bucket_step_px), None)
        if self.buckets and unaligned_side:
            raise ValueError(
                f"train.resolution={unaligned_side} is not a multiple of "
                f"train.bucket_step_px={bucket_step_px}, so "
                "that not even its square is a bucket; make the one a multiple of the other"
            )
        return self
