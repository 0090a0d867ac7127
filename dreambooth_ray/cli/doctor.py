"""`dreambooth doctor`: what is wrong with a folder of photographs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.data.quality.inspection import InspectionReport
    from dreambooth_ray.evaluation.segmentation import MaskProposer

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def doctor(
    folder: Annotated[Path, typer.Argument(help="folder of photographs")],
    resolution: Annotated[int, typer.Option(min=8, help="of the training to come, pixels")] = 512,
    class_noun: Annotated[str, typer.Option(help="what the subject is: dog, shoe")] = "",
    identifier: Annotated[str, typer.Option(help="the word captions should hold")] = "",
    encoder: Annotated[
        str, typer.Option(help="a CLIP or vision network; toyworld:attributes for the toy world")
    ] = "",
    segment: Annotated[
        str, typer.Option(help="a network for semantic segmentation, which proposes masks")
    ] = "",
    write_masks: Annotated[
        bool,
        typer.Option("--write-masks", help="write what --segment proposes; masks there stay"),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="also write a page for people here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Look for blur, bad light, noise, bars, tiny subjects, copies and strangers in photographs."""
    from dreambooth_ray.bundles.new_path import check_file_is_writable, explained_writing
    from dreambooth_ray.data.photographs import find_photographs

    # Before what is large is imported.
    find_photographs(folder, key="FOLDER")
    if write_masks and not segment:
        raise ConfigError("--write-masks needs a network that proposes masks: give --segment")
    if out:
        check_file_is_writable(out, photo_folders=[folder])
    from dreambooth_ray.data.quality.inspection import inspect_photographs
    from dreambooth_ray.evaluation.encoders import as_image_text_encoder, load_image_encoder
    from dreambooth_ray.evaluation.noun_classifier import make_noun_classifier

    image_encoder = load_image_encoder(encoder, key="--encoder") if encoder else None
    text_encoder = as_image_text_encoder(image_encoder)
    classify_nouns = (
        make_noun_classifier(text_encoder, class_noun) if class_noun and text_encoder else None
    )
    embed_images = image_encoder.embed_images if image_encoder else None
    mask_proposer = _make_mask_proposer(segment, class_noun, write_masks) if segment else None
    report = inspect_photographs(
        folder, resolution, identifier, class_noun, embed_images, classify_nouns,
        propose_mask=mask_proposer.propose if mask_proposer else None,
    )  # fmt: skip
    mask_outcomes = mask_proposer.outcomes if mask_proposer else {}
    if as_json:
        print(json.dumps(report.as_json() | {"proposed_masks": mask_outcomes}, indent=1))
    else:
        _print_photograph_issues(report, mask_outcomes)
    if out:
        from dreambooth_ray.evaluation.quality_page import render_quality_page

        quality_page_html = render_quality_page(report)
        with explained_writing(out):
            # A photograph's name need not be UTF-8.
            out.write_text(quality_page_html, encoding="utf-8", errors="backslashreplace")


def _make_mask_proposer(uri: str, class_noun: str, write_masks: bool) -> "MaskProposer":
    from dreambooth_ray.evaluation.segmentation import MaskProposer, Segmenter

    return MaskProposer(Segmenter(uri, class_noun), writes=write_masks)


def _print_photograph_issues(report: "InspectionReport", mask_outcomes: dict[str, str]) -> None:
    photo_count_text = describe_count(len(report.photos), "photograph")
    print(f"{report.folder}: {photo_count_text}, {report.worst_severity}")
    for issue in report.issues:
        print(f"{issue.severity}: {issue.sentence} ({issue.describe_measured_value()})")
    for name, mask_outcome in mask_outcomes.items():
        print(f"proposed mask of {name}: {mask_outcome}")
    for skipped_photo_text in report.skipped:
        print(f"not looked at: {skipped_photo_text}")
