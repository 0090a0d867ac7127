"""A request to the sampling engine; invalid ones are refused early."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth_ray.config.adapter_mix import AdapterMix, AdapterUse, check_mix_limits, describe_mix
from dreambooth_ray.config.sampling_params import SamplingParams, build_sampling_params
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily

MAX_PROMPT_CHARACTERS = 10_000


@dataclass(frozen=True, init=False)
class Request:
    """One image. The same request on the same weights gives the same image.

    params:               how it is sampled; see SamplingParams
    width_px, height_px:  None for the model's own side; both or neither
    image, strength:      start image, and how much of the denoising is done on it (0 to 1]
    mask:                 white is generated, black is kept; needs an image of its size
    adapters:             that the engine has loaded, each with its weight; one alone by `adapter`
    """

    prompt: str
    seed: int
    negative_prompt: str
    params: SamplingParams
    width_px: int | None
    height_px: int | None
    image: Image.Image | None
    strength: float
    mask: Image.Image | None
    adapters: AdapterMix

    def __init__(
        self,
        prompt: str,
        seed: int,
        negative_prompt: str = "",
        *,
        params: SamplingParams | None = None,
        width_px: int | None = None,
        height_px: int | None = None,
        image: Image.Image | None = None,
        strength: float = 0.8,
        mask: Image.Image | None = None,
        adapter: str | None = None,
        adapters: Sequence[AdapterUse] = (),
        **changed_params: object,
    ) -> None:
        """changed_params: fields of SamplingParams, in place of those in `params`.

        raises: ConfigError naming the field
        """
        params = params or SamplingParams()
        if changed_params:
            params = build_sampling_params({**params.given_values, **changed_params})
        request_values = {
            "prompt": prompt, "seed": seed, "negative_prompt": negative_prompt, "params": params,
            "width_px": width_px, "height_px": height_px, "image": image, "strength": strength,
            "mask": mask, "adapters": _merge_adapter_arguments(adapter, adapters),
        }  # fmt: skip
        for field_name, field_value in request_values.items():
            object.__setattr__(self, field_name, field_value)
        self._check_request_fields()

    def _check_request_fields(self) -> None:
        for field_name in ("prompt", "negative_prompt"):
            prompt_text = getattr(self, field_name)
            if len(prompt_text) > MAX_PROMPT_CHARACTERS:
                raise ConfigError(
                    f"{field_name} has {len(prompt_text)} characters; at most "
                    f"{MAX_PROMPT_CHARACTERS} are taken"
                )
        _check_value_range("seed", self.seed, 0, 2**63 - 1)
        _check_value_range("strength", self.strength, 0, 1)
        check_mix_limits(self.adapters)
        self._check_side_multiples()
        self._check_images()

    def _check_side_multiples(self) -> None:
        if (self.width_px is None) != (self.height_px is None):
            raise ConfigError("width_px and height_px must be given both, or neither")
        for side_name, side in (("width_px", self.width_px), ("height_px", self.height_px)):
            if side is not None and (side < 8 or side % 8):
                raise ConfigError(f"{side_name}={side} must be a positive multiple of 8")

    def _check_images(self) -> None:
        if self.mask is not None and self.image is None:
            raise ConfigError("mask is given without an image to keep the rest of")
        if self.mask is not None and self.image is not None and self.mask.size != self.image.size:
            raise ConfigError(
                f"mask is {_format_image_size(self.mask)} pixels and image "
                f"{_format_image_size(self.image)}; they must have one size"
            )
        if self.image is not None and self.strength <= 0:
            raise ConfigError("strength=0 would leave the image as it is; give more than 0")

    def receipt(self) -> dict[str, object]:
        """Every field but the images, to store; None and defaults included."""
        receipt_values: dict[str, object] = {}
        for field in fields(self):
            if field.name == "params":
                receipt_values |= self.params.model_dump()
            elif field.name == "adapters":
                receipt_values["adapters"] = describe_mix(self.adapters)
            elif field.name not in ("image", "mask"):
                receipt_values[field.name] = getattr(self, field.name)
        return receipt_values


def _merge_adapter_arguments(adapter: str | None, adapters: Sequence[AdapterUse]) -> AdapterMix:
    return (*([AdapterUse(adapter)] if adapter is not None else []), *adapters)


def fill_request(family: ModelFamily, request: Request) -> Request:
    """With the family's own values for parameters that nobody has set."""
    filled_request = copy.copy(request)
    sampling_params = request.params.fill_defaults(family.sampling_defaults)
    object.__setattr__(filled_request, "params", sampling_params)
    return filled_request


def png_receipt(request: Request, **more: str) -> PngInfo:
    """PNG text fields with everything needed to generate the image again."""
    png_info = PngInfo()
    for field_name, field_value in {**request.receipt(), **more}.items():
        png_info.add_text(field_name, str(field_value))
    return png_info


def _check_value_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name}={value} must be from {low} to {high}")


def _format_image_size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
