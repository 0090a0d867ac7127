"""Every key of a recipe and of a serving configuration."""

import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pages.markdown import cell, code, page, table

# Keys that the code gives no description; a key with neither is an error.
MEANINGS = {
    "prior.solver": "how class images are sampled",
    "prior.num_inference_steps": "denoising steps of a class image",
    "prior.guidance_scale": "classifier-free guidance of a class image",
    "sample.prompts": "what the samples show; the placeholders are filled in",
    "sample.num_inference_steps": "denoising steps of a sample",
    "sample.guidance_scale": "classifier-free guidance of a sample",
}


def configuration() -> str:
    """Every key of Config and ServeConfig."""
    from dreambooth_ray.config.schema import Config  # noqa: PLC0415
    from dreambooth_ray.config.serving import ServeConfig  # noqa: PLC0415

    intro = (
        "A recipe is a YAML file with the keys below. A key on the command line wins: "
        "`dreambooth train RECIPE train.steps=200`. An unknown key is an error, and the message "
        "names the nearest right key. *Required* stands where a key has no default."
    )
    return page(
        "Configuration",
        "dreambooth_ray/config",
        intro,
        "## Of a run",
        "For `train`, `resume`, `priors make`, `preflight` and `submit`.",
        *sections(Config, "", seen := dict[type, str]()),
        "## Of the endpoint",
        "For `dreambooth serve`. Sections `storage` and `cluster` are those of a run.",
        *sections(ServeConfig, "", seen),
    )


def sections(model: type[BaseModel], path: str, seen: dict[type, str]) -> Iterator[str]:
    """A heading and a table for a section, then its own sections."""
    rows: list[tuple[str, ...]] = []
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        nested = list(models_in(field.annotation))
        inner += [(inner_path(key, field.annotation), n) for n in nested]
        if field.annotation not in nested:
            rows.append((code(key), *row(key, field)))
    if path:
        yield f"### {path}"
        yield cell(model.__doc__ or "")
    if rows:
        yield table(("key", "type", "default", "bounds", "meaning"), *rows)
    for key, nested_model in inner:
        if nested_model in seen:
            if seen[nested_model] != key:
                yield f"### {key}"
                yield f"As `{seen[nested_model]}`."
            continue
        seen[nested_model] = key
        yield from sections(nested_model, key, seen)


def inner_path(key: str, annotation: Any) -> str:
    """How the keys of a section inside this key are written."""
    origin = typing.get_origin(annotation)
    return f"{key}.NAME" if origin is dict else f"{key}[]" if origin is tuple else key


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def row(key: str, field: FieldInfo) -> tuple[str, ...]:
    """Type, default, bounds and meaning of a key."""
    last = key.rpartition(".")[2]
    meaning = field.description or MEANINGS.get(key) or MEANINGS.get(last)
    if meaning is None:
        sys.exit(f"{key} has no description; give its Field one")
    found = list(bounds(field.metadata))
    limits = ", ".join(found).replace("|", "\\|")
    return type_words(field.annotation), default_words(field), limits, cell(meaning)


def default_words(field: FieldInfo) -> str:
    """The default as one would write it."""
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        return ""
    return code(json.dumps(value, ensure_ascii=False))


def bounds(metadata: list[Any]) -> Iterator[str]:
    """Bounds of a value in words."""
    signs = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    for part in metadata:
        for attribute, word in signs.items():
            if (value := getattr(part, attribute, None)) is not None:
                yield f"{word} {value}"
        if (shortest := getattr(part, "min_length", None)) and shortest == 1:
            yield "not empty"
        if (pattern := getattr(part, "pattern", None)) is not None:
            yield f"like `{pattern}`"


def type_words(annotation: Any) -> str:  # noqa: PLR0911
    """A type in words."""
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false",
             type(None): "null", Any: "any value"}  # fmt: skip
    if annotation in plain:
        return plain[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_words(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(a) for a in arguments)
    if origin is tuple:
        return f"list of {type_words(arguments[0])}"
    if origin is dict:
        return f"map of names to {type_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section of " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    raise TypeError(annotation)
