"""Drawing pictures from prompts with a Stable Diffusion pipeline."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth_ray.errors import ConfigError


@dataclass(frozen=True)
class Request:
    """One picture. The same request on the same weights gives the same picture.

    size_px: side of the square picture, or None for the model's own
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    size_px: int | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps={self.num_inference_steps} must be at least 1")
        if self.guidance_scale < 1:
            raise ConfigError(f"guidance_scale={self.guidance_scale} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must be from 0 to 2**63 - 1")


@torch.inference_mode()
def draw(
    pipeline: StableDiffusionPipeline,
    requests: list[Request],
    batch_size: int = 8,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Image.Image]:
    """Draw every request, in order, up to `batch_size` at once.

    Both guidance halves go through one forward. Initial noise is torch.randn on the CPU
    from the request's own seed: diffusers' pipeline with generator=manual_seed(seed)
    starts from the same.
    """
    pictures: list[Image.Image] = []
    for group in _batches(requests, batch_size):
        first = group[0]
        made = pipeline(
            prompt=[r.prompt for r in group],
            negative_prompt=[r.negative_prompt for r in group],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            height=first.size_px,
            width=first.size_px,
            generator=[torch.Generator().manual_seed(r.seed) for r in group],
        )
        pictures += made.images
        on_batch(len(pictures))
    return pictures


def _batches(requests: list[Request], batch_size: int) -> list[list[Request]]:
    """Consecutive requests that can share a forward."""
    groups: list[list[Request]] = []
    for request in requests:
        last = groups[-1] if groups else []
        if last and len(last) < batch_size and _shape(last[0]) == _shape(request):
            last.append(request)
        else:
            groups.append([request])
    return groups


def _shape(request: Request) -> tuple[int, float, int | None]:
    return request.num_inference_steps, request.guidance_scale, request.size_px


def receipt(request: Request, **more: str) -> PngInfo:
    """PNG text fields with everything needed to draw the picture again."""
    info = PngInfo()
    for key, value in {**asdict(request), **more}.items():
        info.add_text(key, str(value))
    return info


def grid(pictures: list[Image.Image], columns: int, gap_px: int = 2) -> Image.Image:
    """Equal-sized pictures in rows of `columns` on white."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px),
        (255, 255, 255),
    )
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap_px), i // columns * (height + gap_px)))
    return sheet
