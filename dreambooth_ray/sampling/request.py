"""A request to the sampling engine; invalid ones are refused early."""

import math
from dataclasses import dataclass, fields

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.sampling.solvers import KARRAS_SOLVERS, SOLVERS

MAX_PROMPT_CHARACTERS = 10_000
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Request:
    """One image. The same request on the same weights gives the same image.

    width_px, height_px:  None for the model's own side; both or neither
    solver:               a name in `solvers.SOLVERS`
    eta:                  0 for deterministic DDIM, 1 for DDPM's noise; ddim alone
    karras:               sigmas after Karras et al. 2022, eq. 5; euler and dpmpp_2m
    guidance_rescale:     0 off, to 1 (Lin et al. 2023, arXiv 2305.08891, section 3.4)
    guidance_interval:    fractions of the denoising between which guidance is on
                          (Kynkäänniemi et al. 2024, arXiv 2404.07724)
    guidance_every:       a new unconditional prediction every so many steps, the last
                          difference in between; 1 is exact
    cache_every:          the UNet's middle anew every so many steps (DeepCache, arXiv
                          2312.00858); 1 is exact
    clip_skip:            text encoder layers left out at the end
    image, strength:      start image, and how much of the denoising is done on it (0 to 1]
    mask:                 white is generated, black is kept; needs an image of its size
    adapter:              name of a LoRA that the engine has loaded
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    width_px: int | None = None
    height_px: int | None = None
    solver: str = "ddim"
    eta: float = 0.0
    karras: bool = False
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_every: int = 1
    cache_every: int = 1
    clip_skip: int = 0
    image: Image.Image | None = None
    strength: float = 0.8
    mask: Image.Image | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        """raises ConfigError naming the field."""
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if len(text) > MAX_PROMPT_CHARACTERS:
                raise ConfigError(
                    f"{name} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are taken"
                )
        _check_range("seed", self.seed, 0, 2**63 - 1)
        _check_range("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_range("guidance_scale", self.guidance_scale, 1, MAX_GUIDANCE)
        _check_range("guidance_rescale", self.guidance_rescale, 0, 1)
        _check_range("guidance_every", self.guidance_every, 1, MAX_STEPS)
        _check_range("cache_every", self.cache_every, 1, MAX_STEPS)
        _check_range("eta", self.eta, 0, 1)
        _check_range("clip_skip", self.clip_skip, 0, 100)
        _check_range("strength", self.strength, 0, 1)
        self._check_solver()
        self._check_size()
        self._check_images()
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise ConfigError(
                f"guidance_interval={self.guidance_interval} must be (start, end) with "
                "0 <= start < end <= 1"
            )

    def _check_solver(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigError(
                f"solver={self.solver!r} is unknown; choose one of {_join_names(SOLVERS)}"
            )
        if self.eta and self.solver != "ddim":
            raise ConfigError(f"eta={self.eta} is for solver 'ddim' alone, not {self.solver!r}")
        if self.karras and self.solver not in KARRAS_SOLVERS:
            raise ConfigError(
                f"karras=True is for solvers {_join_names(KARRAS_SOLVERS)}, not {self.solver!r}"
            )

    def _check_size(self) -> None:
        if (self.width_px is None) != (self.height_px is None):
            raise ConfigError("width_px and height_px must be given both, or neither")
        for name, side in (("width_px", self.width_px), ("height_px", self.height_px)):
            if side is not None and (side < 8 or side % 8):
                raise ConfigError(f"{name}={side} must be a positive multiple of 8")

    def _check_images(self) -> None:
        if self.mask is not None and self.image is None:
            raise ConfigError("mask is given without an image to keep the rest of")
        if self.mask is not None and self.image is not None and self.mask.size != self.image.size:
            raise ConfigError(
                f"mask is {_format_size(self.mask)} pixels and image {_format_size(self.image)}; "
                "they must have one size"
            )
        if self.image is not None and self.strength <= 0:
            raise ConfigError("strength=0 would leave the image as it is; give more than 0")

    def receipt(self) -> dict[str, object]:
        """Every field but the images, to store; None and defaults included."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if k not in ("image", "mask")}


def png_receipt(request: Request, **more: str) -> PngInfo:
    """PNG text fields with everything needed to generate the image again."""
    info = PngInfo()
    for key, value in {**request.receipt(), **more}.items():
        info.add_text(key, str(value))
    return info


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name}={value} must be from {low} to {high}")


def _join_names(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _format_size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
