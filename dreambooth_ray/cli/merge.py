"""`dreambooth merge` and `resize`: adapters made of others."""

from pathlib import Path
from typing import Annotated

import typer

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE[:WEIGHT]...", help="files of any trainer, and runs"),
    ],
    out: Annotated[Path, typer.Option(help="a new folder")],
    base: Annotated[str, typer.Option(help="the model, as model.uri; a run knows its own")] = "",
    into: Annotated[str, typer.Option(help="bundle (adapters) or model (a directory)")] = "bundle",
    rank: Annotated[
        int | None, typer.Option(help="of a bundle's layers at most; all of LoRA's if not given")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="float16 instead of float32")] = False,
) -> None:
    """Add adapters together, each times its weight; prints what a rank costs, and the path."""
    from dreambooth_ray import adapter_editing

    lora_rank_report = adapter_editing.merge(
        sources, out, base=base, into=into, rank=rank, half=half
    )
    if lora_rank_report is not None and rank is not None:
        print("\n".join(lora_rank_report.lines()))
    print(out)


def resize(
    source: Annotated[str, typer.Argument(help="an adapter's file, a folder of peft's, or a run")],
    out: Annotated[Path, typer.Option(help="a new file for a file, else a new folder")],
    rank: Annotated[int, typer.Option(help="that layers have at most")],
) -> None:
    """Cut an adapter to a lower rank; prints the relative error of each layer, and the path."""
    from dreambooth_ray import adapter_editing

    print("\n".join(adapter_editing.resize(source, out, rank=rank).lines()))
    print(out)
