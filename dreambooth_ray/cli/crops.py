"""`dreambooth crops`: what a training would see of the photographs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dreambooth_ray.config.count_text import describe_count

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def crops(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or a shipped recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value")] = None,
    out: Annotated[Path, typer.Option(help="a sheet for people is written here")] = Path(
        "crops.png"
    ),
) -> None:
    """Draw what a training would see of its photographs, and in which shapes."""
    from collections import Counter

    from dreambooth_ray.bundles.new_path import check_file, explained_writing
    from dreambooth_ray.config.load import load_config
    from dreambooth_ray.data.crop_sheet import draw_crops
    from dreambooth_ray.data.subject import check_masks, read_configured_subject
    from dreambooth_ray.sampling.image_grid import image_grid

    config = load_config(recipe, overrides or [])
    check_file(out, photo_folders=[subject.photos for subject in config.all_subjects])
    photographs = []
    for subject in config.all_subjects:
        of_subject = read_configured_subject(config, subject)
        for doubt in check_masks(config, of_subject):
            print(f"warning: subject.photos={subject.photos!r}: {doubt}", file=sys.stderr)
        photographs += of_subject
    cells = draw_crops(photographs, is_squeezed=config.train.crop == "none")
    with explained_writing(out):
        image_grid(cells, columns=2, gap_px=12).save(out, "PNG")
    counts = Counter(view.shape.text for photograph in photographs for view in photograph.views)
    for shape, count in sorted(counts.items()):
        print(f"{shape}: {describe_count(count, 'photograph')}")
    print(out)
