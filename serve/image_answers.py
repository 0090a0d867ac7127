"""The answer of generations and edits: images by value, or kept and named by URL."""

import asyncio
import base64
import time

from fastapi import Request

from dreambooth_ray.errors import StorageError
from serve.api_errors import APIError, storage_away_error
from serve.api_messages import ImageAnswer, ImageRequest, ImagesAnswer
from serve.base_url import find_base_url
from serve.generation_spec import EncodedImage
from serve.signed_image_files import SignedImageFiles


def require_base64_response_format(body: ImageRequest, where: str) -> None:
    """raises APIError where a request asks for URLs and there are none. where: ends the sentence"""
    if body.response_format == "url":
        error_message = f"response_format=url is not for {where}"
        raise APIError(400, "invalid_value", error_message, param="response_format")


async def build_images_answer_json(
    request: Request,
    signed_files: SignedImageFiles,
    urls_base: str | None,
    body: ImageRequest,
    encoded_images: list[EncodedImage],
) -> str:
    """An ImagesAnswer as JSON, without the field that was not asked for.

    urls_base: what URLs begin with; None for where the caller reached this endpoint
    """
    if body.response_format == "url":
        base_url = (urls_base or find_base_url(request)).rstrip("/")
        image_answers = [
            ImageAnswer(url=f"{base_url}{path}", receipt=encoded.receipt)
            for encoded, path in zip(
                encoded_images, await _store_images(signed_files, body, encoded_images), strict=True
            )
        ]
    else:
        image_answers = [
            ImageAnswer(b64_json=base64.b64encode(e.data).decode(), receipt=e.receipt)
            for e in encoded_images
        ]
    receipt = encoded_images[0].receipt
    images_answer = ImagesAnswer(
        created=int(time.time()),
        data=image_answers,
        output_format=body.output_format,
        size=f"{receipt.width}x{receipt.height}",
    )
    excluded_image_field = "b64_json" if body.response_format == "url" else "url"
    return images_answer.model_dump_json(exclude={"data": {"__all__": {excluded_image_field}}})


async def _store_images(
    signed_files: SignedImageFiles, body: ImageRequest, encoded_images: list[EncodedImage]
) -> list[str]:
    """Their signed paths."""
    try:
        return [
            await asyncio.to_thread(signed_files.write, e.data, body.output_format)
            for e in encoded_images
        ]
    except (StorageError, OSError) as error:
        raise storage_away_error() from error
