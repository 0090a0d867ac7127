"""Pictures from a bundle to PNG files that say how to draw them again."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dreambooth_ray.diffusion.components import load_pipeline, model_directory, model_hash
from dreambooth_ray.diffusion.sampling import Request, draw, receipt
from dreambooth_ray.diffusion.sampling import grid as arrange
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.export.bundle import bundle_about


def generate(
    model: str,
    out: Path,
    *,
    prompt: str,
    negative_prompt: str,
    num_images: int,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    grid: bool,
    on_progress: Callable[[int, int], None],
) -> list[Path]:
    """Draw `num_images` pictures, picture k with seed + k; returns the files written.

    on_progress(done, total) is called after each batch

    raises: ConfigError, StorageError
    """
    directory = model_directory(model, key="MODEL")
    prompt = prompt.strip() or bundle_about(directory).get("prompt", "")
    if not prompt:
        raise ConfigError(f"--prompt is empty, and {model} is no bundle with a prompt of its own")
    requests = [
        Request(prompt, seed + k, negative_prompt, num_inference_steps, guidance_scale)
        for k in range(num_images)
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out={str(out)!r} can't be made: {error}; choose another") from error
    pictures = draw(
        load_pipeline(directory), requests, on_batch=lambda done: on_progress(done, num_images)
    )
    weights = model_hash(directory)
    paths = []
    for request, picture in zip(requests, pictures, strict=True):
        path = out / f"{request.seed:06d}.png"
        picture.save(path, pnginfo=receipt(request, model=directory.name, model_hash=weights))
        paths.append(path)
    if grid:
        paths.append(_save_grid(pictures, out))
    return paths


def _save_grid(pictures: list[Image.Image], out: Path) -> Path:
    path = out / "grid.png"
    arrange(pictures, columns=min(len(pictures), max(2, round(len(pictures) ** 0.5)))).save(path)
    return path
