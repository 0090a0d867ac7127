"""One photograph and what is measured on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_ray.data.masks import darken_outside_mask, read_mask
from dreambooth_ray.data.photographs import read_photograph
from dreambooth_ray.data.quality import measurements
from dreambooth_ray.data.quality.exposure import Exposure, measure_exposure, measure_noise
from dreambooth_ray.data.quality.measurements import BorderBars
from dreambooth_ray.data.quality.photo_placing import PhotoMatchFeatures
from dreambooth_ray.data.quality.sharpness import Sharpness, measure_sharpness
from dreambooth_ray.data.quality.subject_region import (
    RegionSource,
    SubjectRegion,
    find_subject_region,
)
from dreambooth_ray.errors import DataError

_KEPT_SIDE_PX, _MEASURED_SIDE_PX = 1024, 512

# Of a photograph: its path and the image upright, to a mask of its size.
ProposeMask = Callable[[Path, Image.Image], Image.Image | None]


@dataclass(frozen=True)
class MeasuredPhoto:
    """One photograph and what was measured on it.

    image: a copy, its short side 1024 px at most; width_px, height_px: of the file
    region: the subject, in the copy inside its bars at 512 px
    noise: grain between colours, see `exposure.measure_noise`
    extent: its spread over the frame by colour and by detail, see
        `measurements.estimate_subject_extent`
    mask_error: why its mask was not used
    """

    name: str
    image: Image.Image
    width_px: int
    height_px: int
    region: SubjectRegion
    sharpness: Sharpness
    exposure: Exposure
    noise: float
    extent: tuple[float, float]
    bars: BorderBars
    signature: PhotoMatchFeatures
    mask_error: str = ""

    @property
    def darkened_background_image(self) -> Image.Image | None:
        """For people: what is inside its bars, dark outside its subject; None without a region."""
        if self.region.source == "frame":
            return None
        image_without_bars = measurements.crop_border_bars(self.image, self.bars)
        region_mask = Image.fromarray(self.region.inside.astype(np.uint8) * 255)
        return darken_outside_mask(image_without_bars, region_mask.resize(image_without_bars.size))

    def as_json(self) -> dict[str, object]:
        """Its numbers, for a file."""
        return {
            "name": self.name,
            "width_px": self.width_px,
            "height_px": self.height_px,
            "subject": {"from": self.region.source, "share": round(self.region.frame_share, 4)},
            "sharpness": vars(self.sharpness),
            "exposure": vars(self.exposure),
            "noise": self.noise,
            "extent": self.extent,
            "bars": vars(self.bars),
        }


def measure_photo(
    path: Path, mask: Image.Image | None = None, propose_mask: ProposeMask | None = None
) -> MeasuredPhoto:
    """Read and measure a file.

    mask: white where the subject is; without one, that beside the file or its transparency is
        taken (`masks.read_mask`), and without a good one what stands out
    propose_mask: asked for a photograph without a mask
    raises: DataError if the photograph can't be read
    """
    image, mask_error = read_photograph(path), ""
    mask_source: RegionSource = "mask"
    if mask is None:
        try:
            mask = read_mask(path, image.size)
        except DataError as error:
            mask_error = str(error)
    if mask is None and not mask_error and propose_mask is not None:
        mask, mask_source = propose_mask(path, image), "proposed mask"
    photo = measure_image(path.name, image, mask, mask_source)
    return replace(photo, mask_error=mask_error)


def measure_image(
    name: str,
    image: Image.Image,
    mask: Image.Image | None = None,
    mask_source: RegionSource = "mask",
) -> MeasuredPhoto:
    """Measure an image as its file shows it; mask: white where the subject is."""
    width_px, height_px = image.size
    reduced_image = measurements.reduce_short_side(image.convert("RGB"), _KEPT_SIDE_PX)
    border_bars = measurements.measure_border_bars(reduced_image)
    image_without_bars = measurements.crop_border_bars(reduced_image, border_bars)
    small_image = measurements.reduce_short_side(image_without_bars, _MEASURED_SIDE_PX)
    mask_without_bars = (
        measurements.crop_border_bars(mask.resize(reduced_image.size), border_bars)
        if mask
        else None
    )
    subject_region = find_subject_region(small_image, mask_without_bars, mask_source)
    rgb = np.asarray(small_image, dtype=np.float32)
    grey = measurements.to_grey(small_image)
    return MeasuredPhoto(
        name=name,
        image=reduced_image,
        width_px=width_px,
        height_px=height_px,
        region=subject_region,
        sharpness=measure_sharpness(grey, subject_region.around),
        exposure=measure_exposure(rgb, grey, subject_region.inside),
        noise=measure_noise(rgb, grey),
        extent=measurements.estimate_subject_extent(small_image),
        bars=border_bars,
        signature=PhotoMatchFeatures(image_without_bars, subject_region),
    )
