"""`dreambooth caption`: captions of photographs by a vision model."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.config.count_text import describe_count
from dreambooth_ray.errors import DreamBoothError

if TYPE_CHECKING:
    from dreambooth_ray.captioning.folder_captioning import CaptioningResult

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def caption(
    folder: Annotated[Path, typer.Argument(help="folder of photographs")],
    api: Annotated[
        str, typer.Option(help="base URL of an OpenAI-compatible server, such as http://host/v1")
    ],
    model: Annotated[str, typer.Option(help="a vision model; the only one there if none")] = "",
    prompt: Annotated[
        str, typer.Option(help="what to ask; {identifier} and {class_noun} are filled in")
    ] = "",
    class_noun: Annotated[str, typer.Option(help="what the subject is: dog, shoe")] = "",
    identifier: Annotated[
        str, typer.Option(help="word that captions shall hold; with --class-noun it is sks")
    ] = "",
    key_env: Annotated[
        str, typer.Option(help="environment variable that holds the server's key, if it needs one")
    ] = "DREAMBOOTH_CAPTION_KEY",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="write captions that are there anew")
    ] = False,
    side_px: Annotated[
        int, typer.Option(min=64, max=8192, help="longer side of what is sent, at most")
    ] = 1024,
    timeout_s: Annotated[float, typer.Option(min=1, help="for an answer")] = 120,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="requests at once")] = 1,
) -> None:
    """Have a vision model caption photographs; each caption is written beside its photograph."""
    from dreambooth_ray.captioning.folder_captioning import CaptioningOptions, caption_folder
    from dreambooth_ray.captioning.vision_client import VisionClient
    from dreambooth_ray.data.photographs import find_photographs
    from dreambooth_ray.display import ProgressStage

    find_photographs(folder, key="FOLDER")
    if class_noun and not identifier:
        identifier = "sks"
    captioning_options = CaptioningOptions(
        prompt, class_noun, identifier, side_px, parallel, overwrite
    )
    api_key = os.environ.get(key_env, "").strip()
    vision_client = VisionClient(api, api_key, model, timeout_s)
    if api_key and vision_client.is_unencrypted:
        warning_text = (
            f"warning: --api={vision_client.api!r} is not https: the key goes there as it is"
        )
        print(warning_text, file=sys.stderr)
    try:
        captioning_result = caption_folder(
            folder, vision_client, captioning_options, ProgressStage("captions")
        )
    finally:
        vision_client.close()
    _print_result(captioning_result)


def _print_result(result: "CaptioningResult") -> None:
    for photograph_name, text in sorted(result.written.items()):
        print(f"{photograph_name}: {text}")
    if result.skipped:
        print(f"{describe_count(len(result.skipped), 'photograph')} had a caption, which stays")
    if not result.failures:
        return
    failure_reasons = "; ".join(
        f"{photograph_name}: {text}"
        for photograph_name, text in sorted(result.failures.items())[:5]
    )
    more_text = f"; and {len(result.failures) - 5} more" if len(result.failures) > 5 else ""
    num_photographs = len(result.failures) + len(result.written)
    raise DreamBoothError(
        f"{len(result.failures)} of {describe_count(num_photographs, 'photograph')} got no "
        f"caption: {failure_reasons}{more_text}. Run it again to ask for these alone"
    )
