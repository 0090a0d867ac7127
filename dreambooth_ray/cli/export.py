"""`dreambooth export`: a run in the file formats of others."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="a run, a bundle, or a model as model.uri")],
    form: Annotated[
        str, typer.Option("--format", help="diffusers, lora, kohya or single-file")
    ] = "diffusers",
    out: Annotated[Path, typer.Option(help="a folder for diffusers, else a .safetensors file")] = (
        Path("out/export")
    ),
    half: Annotated[bool, typer.Option("--half", help="float16 instead of float32")] = False,
) -> None:
    """Write a trained subject as other programs read it; prints the path."""
    from dreambooth_ray import api  # noqa: PLC0415

    print(api.export(run, out, form, half=half))
