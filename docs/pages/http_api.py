"""The endpoint's operations and objects."""

import json
import os
from collections.abc import Iterator
from typing import Any

from pages.markdown import cell, code, page, table

# Fields of the API that the code gives no description.
FIELD_MEANINGS = {
    "prompt": "what the image shows",
    "negative_prompt": "what to keep away from",
    "n": "images",
    "size": "`WIDTHxHEIGHT` in pixels, multiples of 8; `auto` is the model's own",
    "num_inference_steps": "denoising steps",
    "guidance_scale": "classifier-free guidance; 1 is without",
    "solver": "how the denoising goes",
    "stream": "send events instead of one answer; `n` must be 1",
    "partial_images": "previews on the way; needs `stream`",
    "output_format": "file format of the image",
    "strength": "share of the steps done on the start image",
    "webhook_url": "where the job's end is posted",
}


def http_api() -> str:
    """The endpoint's OpenAPI document, as tables."""
    os.environ.pop("DREAMBOOTH_API_KEYS", None)
    from dreambooth_ray.config.serving import ServeConfig  # noqa: PLC0415
    from serve.deployment import build_app_state  # noqa: PLC0415
    from serve.gateway import create_app  # noqa: PLC0415

    document = create_app(build_app_state(ServeConfig(), {})).openapi()
    intro = (
        "A running endpoint shows the same at `/docs`, and the document itself at "
        "`/openapi.json`. How to use it is in [the endpoint's handbook](../how-to/endpoint.md). "
        "Fields that are not listed are refused by name. Limits of a given endpoint can be "
        "lower: see `limits` in [configuration](configuration.md)."
    )
    parts, used = [], dict[str, None]()
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += operation_parts(method, path, operation, schemas, used)
    parts.append("## Objects")
    shown = set[str]()
    while missing := [name for name in used if name not in shown]:
        for name in missing:
            shown.add(name)
            parts += [f"### {name}", cell(schemas[name].get("description", ""))]
            parts.append(fields_table(schemas[name], used))
    return page("HTTP API", "serve's OpenAPI document", intro, *parts)


def operation_parts(
    method: str,
    path: str,
    operation: dict[str, Any],
    schemas: dict[str, Any],
    used: dict[str, None],
) -> list[str]:
    """Heading, meaning, bodies and answers of one operation."""
    parts = [f"## {method.upper()} {cell(path)}", cell(operation.get("description", ""))]
    for place in ("path", "query"):
        named = [code(p["name"]) for p in operation.get("parameters", []) if p["in"] == place]
        if named:
            parts.append(f"In the {place}: {', '.join(named)}.")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = form_schema(content["schema"], schemas)
        parts.append(f"Body as `{kind}`:")
        if "$ref" in schema:
            parts.append(schema_words(schema, used))
        else:
            parts.append(fields_table(schema, used))
    good, refusals = [], []
    for status, answer in sorted(operation["responses"].items()):
        contents = answer.get("content", {})
        words = [schema_words(c.get("schema", {}), used) for c in contents.values()]
        if status.startswith("2"):
            good.append(f"`{status}` with {', '.join(words) or 'a file'}")
        else:
            refusals.append(f"`{status}`")
    needs = "needs a key where keys are set" if operation.get("security") else "needs no key"
    parts.append(f"Answers {', '.join(good)}; refuses with {', '.join(refusals)}. It {needs}.")
    return parts


def form_schema(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The fields of a form that FastAPI has named after a function; any other body as it is."""
    name = schema.get("$ref", "").rpartition("/")[2]
    form: dict[str, Any] = schemas[name] if name.startswith("Body_") else schema
    return form


def fields_table(schema: dict[str, Any], used: dict[str, None]) -> str:
    """The fields of an object."""
    required = schema.get("required", [])
    rows = []
    for name, field in schema.get("properties", {}).items():
        if name in required:
            default = "*required*"
        else:
            default = code(json.dumps(field["default"])) if "default" in field else ""
        limits = cell(", ".join(schema_bounds(field)))
        about = cell(field.get("description") or FIELD_MEANINGS.get(name, ""))
        rows.append((code(name), schema_words(field, used), default, limits, about))
    return table(("field", "type", "default", "bounds", "meaning"), *rows)


def schema_words(schema: dict[str, Any], used: dict[str, None]) -> str:  # noqa: PLR0911
    """A JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        used[name] = None
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(schema_words(s, used) for s in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "prefixItems" in schema:
        return " and ".join(schema_words(s, used) for s in schema["prefixItems"])
    if schema.get("type") == "array":
        return f"list of {schema_words(schema['items'], used)}"
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    names = {"string": "text", "integer": "whole number", "number": "number", "null": "null",
             "boolean": "true or false", "object": "object"}  # fmt: skip
    return names.get(schema.get("type", ""), "any value")


def schema_bounds(schema: dict[str, Any]) -> Iterator[str]:
    """Bounds of a field in words."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to",
             "exclusiveMaximum": "below", "maxLength": "characters up to"}  # fmt: skip
    for part in (schema, *schema.get("anyOf", [])):
        yield from (f"{word} {part[key]:.17g}" for key, word in words.items() if key in part)
