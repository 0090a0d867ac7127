"""Request bodies read by hand, where FastAPI can't refuse unknown fields by name."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serve.api_errors import APIError
from serve.api_messages import RequestBase
from serve.generation_spec import EditUpload

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


async def read_form(request: Request, form: type[M]) -> tuple[M, EditUpload]:
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
    return validate_body_fields(form, fields), _build_upload(files)


def _build_upload(files: dict[str, bytes]) -> EditUpload:
    unknown_form_files = sorted(set(files) - {"image", "mask"})
    if unknown_form_files:
        error_message = (
            f"unknown file {unknown_form_files[0][:80]!r}; send image, and mask if you like"
        )
        raise APIError(400, "unknown_parameter", error_message, param=unknown_form_files[0][:80])
    if "image" not in files:
        error_message = "image is missing; send it as a file"
        raise APIError(400, "missing_parameter", error_message, param="image")
    return EditUpload(files["image"], files.get("mask"))


def check_json_type(request: Request) -> None:
    """raises APIError 415 for a body that says it is something else than JSON

    A page of another site can send every other type without asking the endpoint first.
    """
    body_media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body_media_type != "application/json" and not body_media_type.endswith("+json"):
        error_message = (
            f"the body is {body_media_type[:80] or 'of no type'}; send JSON, with the header "
            "Content-Type: application/json"
        )
        raise APIError(415, "unsupported_media_type", error_message)


async def read_json(request: Request, body: type[M]) -> M:
    """A JSON body; raises APIError."""
    check_json_type(request)
    try:
        json_body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise APIError(400, "invalid_json", "the body is no JSON that can be read") from error
    return validate_body_fields(body, json_body)


def validate_body_fields(form: type[M], content: object) -> M:
    """Fields by a message's rules; raises APIError naming the first at fault."""
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise build_validation_error([dict(e) for e in error.errors()]) from error


def build_validation_error(errors: list[dict[str, Any]]) -> APIError:
    """One validation error for people, without the value: it may be long, or private."""
    first_error = errors[0]
    field_path = [
        str(part) for part in first_error["loc"] if part not in ("body", "query", "path", "header")
    ]
    field_name = ".".join(field_path)[:120] or None
    error_detail = str(first_error["msg"]).removeprefix("Value error, ")
    if first_error["type"] == "json_invalid":
        return APIError(400, "invalid_json", "the body is no JSON that can be read")
    if first_error["type"] == "extra_forbidden":
        error_text = f"{field_name!r} is not supported here; leave it out"
        return APIError(400, "unknown_parameter", error_text, param=field_name)
    if first_error["type"] == "missing":
        error_text = f"{field_name or 'the body'} is missing; give it"
        return APIError(400, "missing_parameter", error_text, param=field_name)
    error_text = (
        f"{field_name}: {error_detail[:1].lower() + error_detail[1:]}"
        if field_name
        else error_detail
    )
    return APIError(400, "invalid_value", error_text[:500], param=field_name)
