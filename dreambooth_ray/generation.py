"""Images from a bundle to PNG files that say how to generate them again."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from dreambooth_ray.adapters.adapter_source import LocalAdapter
from dreambooth_ray.bundles.bundle import read_bundle_metadata
from dreambooth_ray.config.adapter_mix import AdapterUse
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.data.photographs import read_photograph
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import base_directory, model_directory, model_hash
from dreambooth_ray.models.precision import resolve_device, resolve_sampling_dtype
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.image_grid import image_grid as arrange
from dreambooth_ray.sampling.request import Request, png_receipt
from dreambooth_ray.sampling.request_handle import SampleOutput


def generate_image_files(
    model: str,
    out: Path,
    *,
    prompt: str,
    negative_prompt: str,
    num_images: int,
    seed: int,
    params: SamplingParams,
    size_px: tuple[int, int] | None = None,
    image: Path | None = None,
    mask: Path | None = None,
    strength: float = 0.8,
    adapters: Sequence[LocalAdapter] = (),
    grid: bool,
    device: str = "auto",
    dtype: str = "auto",
    on_progress: Callable[[int, int], None],
) -> list[Path]:
    """Generate `num_images` images, image k with seed + k; returns the files written.

    size_px: width and height, the model's own if None; image, mask: an image to start from,
    and what of it is generated anew; adapters: to load, each with its weight; device,
    dtype: as `models.precision` resolves them;
    on_progress(done, total) is called in images
    raises: ConfigError, DataError, StorageError
    """
    directory = resolve_model_directory(model)
    prompt = default_to_bundle_prompt(prompt, directory, model)
    sampling_requests = [
        Request(
            prompt,
            seed + index,
            negative_prompt,
            params=params,
            width_px=size_px[0] if size_px else None,
            height_px=size_px[1] if size_px else None,
            image=read_photograph(image) if image else None,
            mask=read_photograph(mask) if mask else None,
            strength=strength,
            adapters=build_adapter_uses(adapters),
        )
        for index in range(num_images)
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out={str(out)!r} can't be made: {error}; choose another") from error
    engine = create_engine(directory, device, dtype)
    load_adapters(engine, adapters)
    sample_outputs = engine.sample(sampling_requests, on_progress)
    image_paths = _save_images(sample_outputs, directory, out)
    if grid:
        image_paths.append(_save_grid([sample.image for sample in sample_outputs], out))
    return image_paths


def create_engine(directory: Path, device: str = "auto", dtype: str = "auto") -> Engine:
    """An engine on a device by name; raises ConfigError for one that is not there."""
    chosen_device = resolve_device(device)
    family = find_family(base_directory(directory))
    chosen_dtype = resolve_sampling_dtype(chosen_device, family, dtype)
    return Engine(directory, device=str(chosen_device), dtype=chosen_dtype)


def build_adapter_uses(adapters: Sequence[LocalAdapter]) -> tuple[AdapterUse, ...]:
    """As a request names adapters that `load_adapters` has loaded."""
    return tuple(AdapterUse(adapter.name, adapter.weight) for adapter in adapters)


def load_adapters(engine: Engine, adapters: Sequence[LocalAdapter]) -> None:
    """raises: ConfigError naming the adapter and what is wrong with it"""
    for adapter in adapters:
        engine.add_adapter(adapter.name, adapter.path)


def resolve_model_directory(model: str) -> Path:
    """Where the model of a path or URI lies; raises ConfigError, CheckpointError."""
    return model_directory(model, key="MODEL")


def default_to_bundle_prompt(prompt: str, directory: Path, model: str) -> str:
    """The prompt, or the bundle's own; raises ConfigError naming `model` if there is none."""
    prompt_text = prompt.strip() or read_bundle_metadata(directory).get("prompt", "")
    if not prompt_text:
        raise ConfigError(f"--prompt is empty, and {model} is no bundle with a prompt of its own")
    return prompt_text


def _save_images(sample_outputs: list[SampleOutput], directory: Path, out: Path) -> list[Path]:
    """One file an image, with its receipt."""
    weights_hash, image_paths = model_hash(directory), []
    for sample in sample_outputs:
        image_paths.append(out / f"{sample.request.seed:06d}.png")
        png_metadata = png_receipt(sample.request, model=directory.name, model_hash=weights_hash)
        sample.image.save(image_paths[-1], pnginfo=png_metadata)
    return image_paths


def parse_image_size(text: str) -> tuple[int, int] | None:
    """(width, height) from "512x768"; None from nothing; raises ConfigError for others."""
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--size={text!r} is not WIDTHxHEIGHT in pixels, as 512x768")
    return int(width), int(height)


def _save_grid(images: list[Image.Image], out: Path) -> Path:
    grid_path = out / "grid.png"
    arrange(images, columns=min(len(images), max(2, round(len(images) ** 0.5)))).save(grid_path)
    return grid_path
