"""`dreambooth generate`: images of a trained subject."""

from pathlib import Path
from typing import Annotated

import typer

from dreambooth_ray.cli.sampling_options import sampling_options
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.imports import pause_garbage_collection

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N")]
Dtype = Annotated[str, typer.Option(help="auto (half on a GPU), float32, bfloat16 or float16")]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:WEIGHT]",
        help="an adapter to add: a file of any trainer, or a run; may be given again",
    ),
]


@sampling_options()
def generate(
    model: Annotated[str, typer.Argument(help="a run, a bundle, or a model as model.uri")],
    prompt: Annotated[
        str, typer.Option(help="what to draw; a bundle's own prompt if not given")
    ] = "",
    negative_prompt: Annotated[str, typer.Option(help="what to keep away from")] = "",
    num_images: Annotated[int, typer.Option(min=1, help="image k has seed + k")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own")] = "",
    image: Annotated[Path | None, typer.Option(help="image to start from")] = None,
    mask: Annotated[Path | None, typer.Option(help="white is drawn anew")] = None,
    strength: Annotated[float, typer.Option(help="share of the steps done on the image")] = 0.8,
    lora: Loras = None,
    grid: Annotated[bool, typer.Option("--grid", help="also one image of all")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(help="folder for the PNG files")] = Path("out/images"),
    *,
    params: SamplingParams,
) -> None:
    """Generate images with a trained subject; prints their paths."""
    from dreambooth_ray.adapters.adapter_source import locate_adapters
    from dreambooth_ray.models.model_directory import model_outline

    adapters = locate_adapters(lora or [], model_outline(model, "MODEL"), "--lora")
    with pause_garbage_collection():
        from dreambooth_ray.display import ProgressStage
        from dreambooth_ray.generation import generate_image_files, parse_image_size

    paths = generate_image_files(
        model,
        out,
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_images=num_images,
        seed=seed,
        params=params,
        size_px=parse_image_size(size),
        image=image,
        mask=mask,
        strength=strength,
        adapters=adapters,
        grid=grid,
        device=device,
        dtype=dtype,
        on_progress=ProgressStage("images"),
    )
    for path in paths:
        print(path)
