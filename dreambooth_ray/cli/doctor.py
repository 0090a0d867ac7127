"""`dreambooth doctor`: what is wrong with a folder of photographs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.data.quality.inspection import InspectionReport
    from dreambooth_ray.evaluation.segmentation import MaskProposals

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
    from dreambooth_ray.bundles.new_path import check_file, explained_writing
    from dreambooth_ray.data.photographs import find_photographs

    # Before what is large is imported.
    find_photographs(folder, key="FOLDER")
    if write_masks and not segment:
        raise ConfigError("--write-masks needs a network that proposes masks: give --segment")
    if out:
        check_file(out, photo_folders=[folder])
    from dreambooth_ray.data.quality.inspection import inspect_photographs
    from dreambooth_ray.evaluation.encoders import as_text_encoder, load_encoder
    from dreambooth_ray.evaluation.nouns import noun_share

    network = load_encoder(encoder, key="--encoder") if encoder else None
    read = as_text_encoder(network)
    reads = noun_share(read, class_noun) if class_noun and read else None
    embed = network.embed_images if network else None
    proposals = _load_proposals(segment, class_noun, write_masks) if segment else None
    report = inspect_photographs(
        folder, resolution, identifier, class_noun, embed, reads,
        propose_mask=proposals.propose if proposals else None,
    )  # fmt: skip
    outcomes = proposals.outcomes if proposals else {}
    if as_json:
        print(json.dumps(report.as_json() | {"proposed_masks": outcomes}, indent=1))
    else:
        _print_report(report, outcomes)
    if out:
        from dreambooth_ray.evaluation.quality_page import doctor_page

        page = doctor_page(report)
        with explained_writing(out):
            # A photograph's name need not be UTF-8.
            out.write_text(page, encoding="utf-8", errors="backslashreplace")


def _load_proposals(uri: str, class_noun: str, write_masks: bool) -> "MaskProposals":
    from dreambooth_ray.evaluation.segmentation import MaskProposals, Segmenter

    return MaskProposals(Segmenter(uri, class_noun), writes=write_masks)


def _print_report(report: "InspectionReport", mask_outcomes: dict[str, str]) -> None:
    num_photos = describe_count(len(report.photos), "photograph")
    print(f"{report.folder}: {num_photos}, {report.worst_severity}")
    for issue in report.issues:
        print(f"{issue.severity}: {issue.sentence} ({issue.describe_measurement()})")
    for name, outcome in mask_outcomes.items():
        print(f"proposed mask of {name}: {outcome}")
    for line in report.skipped:
        print(f"not looked at: {line}")
