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

    from dreambooth_ray.bundles.new_path import check_file_is_writable, explained_writing
    from dreambooth_ray.config.load import load_config
    from dreambooth_ray.data.crop_sheet import draw_crops
    from dreambooth_ray.data.subject import find_mask_warnings, read_photographs_for_subject_config
    from dreambooth_ray.sampling.image_grid import image_grid

    config = load_config(recipe, overrides or [])
    check_file_is_writable(out, photo_folders=[subject.photos for subject in config.all_subjects])
    photographs = []
    for subject in config.all_subjects:
        subject_photographs = read_photographs_for_subject_config(config, subject)
        for mask_warning in find_mask_warnings(config, subject_photographs):
            print(f"warning: subject.photos={subject.photos!r}: {mask_warning}", file=sys.stderr)
        photographs += subject_photographs
    crop_cells = draw_crops(photographs, is_squeezed=config.train.crop == "none")
    with explained_writing(out):
        image_grid(crop_cells, columns=2, gap_px=12).save(out, "PNG")
    photograph_counts_by_shape = Counter(
        view.shape.text for photograph in photographs for view in photograph.at_all_resolutions
    )
    for shape_text, num_photographs in sorted(photograph_counts_by_shape.items()):
        print(f"{shape_text}: {describe_count(num_photographs, 'photograph')}")
    print(out)
