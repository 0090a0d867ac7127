"""Request bodies read by hand, where FastAPI can't refuse unknown fields by name."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serve.api_errors import APIError
from serve.api_messages import RequestBase
from serve.generation_spec import Upload

M = TypeVar("M", bound=RequestBase)
_FILES = {"image": "image", "image[]": "image", "mask": "mask"}
_MAX_FIELDS = 40
_IMAGE_SCHEMA = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"}


def build_request_schema(
    form: type[RequestBase], also_json: type[RequestBase] | None = None
) -> dict[str, Any]:
    """The request body for the OpenAPI document."""
    form_schema = form.model_json_schema()
    form_schema["properties"] |= {"image": _IMAGE_SCHEMA, "mask": _IMAGE_SCHEMA}
    form_schema["required"] = [*form_schema.get("required", []), "image"]
    body_content = {"multipart/form-data": {"schema": form_schema}}
    if also_json is not None:
        body_content["application/json"] = {"schema": also_json.model_json_schema()}
    return {"requestBody": {"required": True, "content": body_content}}


async def read_form(request: Request, form: type[M]) -> tuple[M, Upload]:
    """A multipart form: its fields by `form`, its files as an Upload; raises APIError."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        error_message = "send multipart/form-data, with the image as the file `image`"
        raise APIError(415, "unsupported_media_type", error_message)
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    try:
        async with request.form(max_files=4, max_fields=_MAX_FIELDS) as form_content:
            for name, value in form_content.multi_items():
                field_name = _FILES.get(name, name)
                if field_name in fields or field_name in files:
                    raise APIError(
                        400,
                        "invalid_value",
                        f"{field_name[:80]} is given twice; give one",
                        param=field_name[:80],
                    )
                if isinstance(value, UploadFile):
                    files[field_name] = await value.read()
                else:
                    fields[field_name] = value
    except (HTTPException, ValueError, KeyError) as error:
        if isinstance(error, HTTPException) and error.status_code == 413:
            raise
        raise APIError(400, "invalid_form", "the form can't be read; check its encoding") from error
    return validate_fields(form, fields), _build_upload(files)


def _build_upload(files: dict[str, bytes]) -> Upload:
    unknown_files = sorted(set(files) - {"image", "mask"})
    if unknown_files:
        error_message = f"unknown file {unknown_files[0][:80]!r}; send image, and mask if you like"
        raise APIError(400, "unknown_parameter", error_message, param=unknown_files[0][:80])
    if "image" not in files:
        error_message = "image is missing; send it as a file"
        raise APIError(400, "missing_parameter", error_message, param="image")
    return Upload(files["image"], files.get("mask"))


def check_json_type(request: Request) -> None:
    """raises APIError 415 for a body that says it is something else than JSON

    A page of another site can send every other type without asking the endpoint first.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        error_message = (
            f"the body is {media_type[:80] or 'of no type'}; send JSON, with the header "
            "Content-Type: application/json"
        )
        raise APIError(415, "unsupported_media_type", error_message)


async def read_json(request: Request, body: type[M]) -> M:
    """A JSON body; raises APIError."""
    check_json_type(request)
    try:
        json_content = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise APIError(400, "invalid_json", "the body is no JSON that can be read") from error
    return validate_fields(body, json_content)


def validate_fields(form: type[M], content: object) -> M:
    """Fields by a message's rules; raises APIError naming the first at fault."""
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise build_validation_error([dict(e) for e in error.errors()]) from error


def build_validation_error(errors: list[dict[str, Any]]) -> APIError:
    """One validation error for people, without the value: it may be long, or private."""
    first = errors[0]
    field_path = [
        str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")
    ]
    param = ".".join(field_path)[:120] or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return APIError(400, "invalid_json", "the body is no JSON that can be read")
    if first["type"] == "extra_forbidden":
        error_text = f"{param!r} is not supported here; leave it out"
        return APIError(400, "unknown_parameter", error_text, param=param)
    if first["type"] == "missing":
        error_text = f"{param or 'the body'} is missing; give it"
        return APIError(400, "missing_parameter", error_text, param=param)
    error_text = f"{param}: {message[:1].lower() + message[1:]}" if param else message
    return APIError(400, "invalid_value", error_text[:500], param=param)
