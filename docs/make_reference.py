"""Writes the pages that are made from code; `--check` exits 1 if one is stale.

docs/reference/*.md come from the configuration's fields, the verbs, the OpenAPI document, the
metrics and the names of files. The handbooks beside the code (serve, cluster, k8s) are copied
into docs/how-to/, with links that work in the site.
"""

import argparse
import ast
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = "<!-- Made by docs/make_reference.py from {source}. Change that, then run the script. -->"

# Handbooks that lie beside the code they are about, and their pages in the site.
HANDBOOKS = {
    "serve/README.md": "how-to/endpoint.md",
    "cluster/README.md": "how-to/clusters.md",
    "k8s/README.md": "how-to/kubernetes.md",
}
# Files with a page of their own in the site.
PAGES = {
    **HANDBOOKS,
    "dreambooth_ray/config/serving.py": "reference/configuration.md",
    "dreambooth_ray/config/schema.py": "reference/configuration.md",
}

# Keys that the code gives no description; a key with neither is an error.
MEANINGS = {
    "prior.solver": "how class images are sampled",
    "prior.num_inference_steps": "denoising steps of a class image",
    "prior.guidance_scale": "classifier-free guidance of a class image",
    "sample.prompts": "what the samples show; the placeholders are filled in",
    "sample.num_inference_steps": "denoising steps of a sample",
    "sample.guidance_scale": "classifier-free guidance of a sample",
}
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
# Keys of metrics.jsonl.
METRIC_KEYS = {
    "step": "optimizer step, from 1",
    "images_seen": "photographs and class images seen so far, over all workers",
    "loss": "instance_loss plus prior.weight times prior_loss",
    "instance_loss": "mean error over the photographs of the step",
    "prior_loss": "mean error over the class images of the step; 0 without them",
    "lr": "learning rate of the step",
    "grad_norm": "global gradient norm before clipping",
    "val_loss": "validation loss, as loss",
    "val_instance_loss": "of the photographs looked at",
    "val_prior_loss": "of the class images kept for validation",
    "val_instance_loss_bin{k}": "of the photographs, in range k of noise levels; 0 has least noise",
    "val_prior_loss_bin{k}": "of the class images, in range k of noise levels",
    "restarts": "how often workers have been started again, once there is one",
    "side_failures": "failures of work beside the steps (loggers, samples), once there is one",
    "skipped_steps": "steps skipped, as their gradient was no number, once there is one",
}
# Names of storage/paths.py that have no comment there, or too short a one for readers.
FILES = {
    "config.yaml": "in a run: the resolved configuration, without keys of storage",
    "metrics.jsonl": "in a run: one line an optimizer step, see [metrics](metrics.md); "
    "of a run that was taken up again `metrics-000002.jsonl`, with the number of its lease",
    "bundle": "in a run: the model for diffusers, with `card.md` and a manifest; "
    "of a lora run the adapters alone",
    "adapter": "in a bundle of a lora run: the adapters in peft's format",
    "checkpoints": "in a run: the complete training state, committed with hashes",
    "tensorboard": "in a run: metrics, throughput and sample images; "
    "`csv`, `wandb` and `mlflow` lie beside it if asked for",
    "ray_train": "in a run: Ray Train's own files",
    "evaluations": "in a run: results of evaluations",
    "priors": "beside `runs`: class images, shared by all runs that ask for the same",
    "end.json": "in a run: that its evaluations or validations ended it early; "
    "numbered like the metrics",
    "priors_failed.json": "in a run: why its class images could not be made; "
    "numbered like the metrics",
    "set.json": "in a set of class images: what it was asked for",
}
PLACEHOLDERS = {"run_id": "RUN_ID", "digest": "HASH"}


def cell(text: object) -> str:
    """Text in a cell of a table."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def code(text: object) -> str:
    """Code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def table(*rows: tuple[str, ...]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(title: str, source: str, *parts: str) -> str:
    """A whole page."""
    return "\n\n".join([f"# {title}", MADE.format(source=source), *parts]) + "\n"


# Configuration


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


# Command line


def command_line() -> str:
    """Every verb with its arguments and options."""
    from typer.main import get_command  # noqa: PLC0415

    from dreambooth_ray.cli.main import app  # noqa: PLC0415

    intro = (
        "Every verb takes `--help`, and `--debug` shows the traceback of an error. Exit codes: 0 "
        "done, 2 a mistake in the input (one line says which value and what to do), 1 anything "
        "else. Results go to the standard output, progress to the standard error."
    )
    parts = list(verbs(get_command(app), "dreambooth"))
    return page("Command line", "dreambooth_ray/cli", intro, *parts)


def verbs(command: Any, path: str) -> Iterator[str]:
    """A heading, usage and a table for a command, then for those below it."""
    # Of a group that finds its commands when asked, as `bench` does, too.
    below = command.list_commands(None) if hasattr(command, "list_commands") else None
    if path != "dreambooth":
        yield f"## {path}"
        yield cell(" ".join((command.help or "").split()))
    if below is None:
        yield usage(command, path)
        rows = [parameter(p) for p in command.params if p.name != "help"]
        if rows:
            yield table(("argument or option", "type", "default", "meaning"), *rows)
        return
    for name in sorted(below):
        yield from verbs(command.commands[name], f"{path} {name}")


def usage(command: Any, path: str) -> str:
    """The line to type."""
    words = [path]
    for p in command.params:
        if p.param_type_name == "argument":
            name = p.name.upper() + ("..." if p.nargs == -1 else "")
            words.append(name if p.required else f"[{name}]")
        elif p.required:
            words.append(f"{p.opts[0]} {p.name.upper()}")
    if any(p.param_type_name == "option" and not p.required for p in command.params):
        words.append("[OPTIONS]")
    return f"    {' '.join(words)}"


def parameter(p: Any) -> tuple[str, ...]:
    """A row of an argument or option."""
    is_argument = p.param_type_name == "argument"
    name = p.name.upper() if is_argument else ", ".join([*p.opts, *p.secondary_opts])
    annotation = p.type_descriptor.annotation
    limits = [f"from {p.min}"] * (p.min is not None) + [f"to {p.max}"] * (p.max is not None)
    kinds = {bool: "switch", str: "text", int: "whole number", float: "number", Path: "path"}
    words = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    kind = " ".join([" or ".join(words) or kinds.get(annotation, "text, repeatable"), *limits])
    default = p.default.as_posix() if isinstance(p.default, Path) else p.default
    if p.required:
        shown = "*required*"
    elif default is None or default is False or default == "":
        shown = ""
    else:
        shown = code("on" if default is True else default)
    return code(name), kind, shown, cell(p.help or "")


# HTTP API


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
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += operation_parts(method, path, operation, used)
    schemas = document["components"]["schemas"]
    parts.append("## Objects")
    shown = set[str]()
    while missing := [name for name in used if name not in shown]:
        for name in missing:
            shown.add(name)
            parts += [f"### {name}", cell(schemas[name].get("description", ""))]
            parts.append(fields_table(schemas[name], used))
    return page("HTTP API", "serve's OpenAPI document", intro, *parts)


def operation_parts(
    method: str, path: str, operation: dict[str, Any], used: dict[str, None]
) -> list[str]:
    """Heading, meaning, bodies and answers of one operation."""
    parts = [f"## {method.upper()} {cell(path)}", cell(operation.get("description", ""))]
    if named := operation.get("parameters"):
        parts.append("In the path: " + ", ".join(code(p["name"]) for p in named) + ".")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        parts.append(f"Body as `{kind}`:")
        if "$ref" in schema:
            parts.append(schema_words(schema, used))
        else:
            parts.append(fields_table(schema, used))
    good, refusals = [], []
    for status, answer in operation["responses"].items():
        contents = answer.get("content", {})
        words = [schema_words(c.get("schema", {}), used) for c in contents.values()]
        if status.startswith("2"):
            good.append(f"`{status}` with {', '.join(words) or 'a file'}")
        else:
            refusals.append(f"`{status}`")
    needs = "needs a key where keys are set" if operation.get("security") else "needs no key"
    parts.append(f"Answers {', '.join(good)}; refuses with {', '.join(refusals)}. It {needs}.")
    return parts


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


# Metrics


def metrics() -> str:
    """Prometheus' metrics of a gateway, and the keys of metrics.jsonl."""
    from serve.gateway_metrics import Metrics  # noqa: PLC0415

    registry = Metrics().registry
    rows = []
    for collector in dict.fromkeys(registry._names_to_collectors.values()):
        described: Any = collector
        (family,) = described.describe()
        suffix = {"counter": "_total", "histogram": "_bucket, _sum, _count"}.get(family.type, "")
        name = ", ".join(f"{family.name}{s}" for s in suffix.split(", "))
        labels = ", ".join(code(label) for label in described._labelnames)
        rows.append((code(name), family.type, labels, cell(family.documentation)))
    in_code = metric_keys()
    if in_code != set(METRIC_KEYS):
        sys.exit(f"METRIC_KEYS differs from the code by {sorted(in_code ^ set(METRIC_KEYS))}")
    keys = [(code(key), cell(about)) for key, about in METRIC_KEYS.items()]
    return page(
        "Metrics",
        "serve/gateway_metrics.py and dreambooth_ray/training",
        "## Of the endpoint",
        "`GET /metrics` answers in Prometheus' text format. Every gateway counts for itself.",
        table(("name", "kind", "labels", "meaning"), *rows),
        "## Of a run",
        "`metrics.jsonl` in the run's folder has one JSON object a line, one line an optimizer "
        "step. Keys that begin with `val_` are there at steps with a validation "
        "(`validation.every`). TensorBoard and the other loggers show the same, and beside it "
        "`throughput/images_per_s` and the sample images.",
        table(("key", "meaning"), *keys),
    )


def metric_keys() -> set[str]:
    """The keys that training writes, read from its source."""
    training = ROOT / "dreambooth_ray" / "training"
    found = set[str]()
    for node in ast.walk(ast.parse((training / "module.py").read_text())):
        if isinstance(node, ast.Dict):
            keys = [k.value for k in node.keys if isinstance(k, ast.Constant)]
            found |= set(keys) if "images_seen" in keys else set()
    text = (training / "callbacks" / "validation.py").read_text()
    found |= set(re.findall(r'"(val_\w+)"', text))
    if re.search(r'f"val_\{\w+\}_loss_bin\{\w+\}"', text):
        found |= {f"val_{half}_loss_bin{{k}}" for half in ("instance", "prior")}
    from dreambooth_ray.training.early_stopping import VALIDATION_LOSS  # noqa: PLC0415
    from dreambooth_ray.training.metrics_log import FAILURES, RESTARTS, SKIPPED  # noqa: PLC0415

    return found | {VALIDATION_LOSS, FAILURES, RESTARTS, SKIPPED}


# Files


def run_files() -> str:
    """Names of files and folders, from storage/paths.py."""
    text = (ROOT / "dreambooth_ray" / "storage" / "paths.py").read_text()
    from dreambooth_ray.storage import paths  # noqa: PLC0415

    names, shapes = [], []
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            value = str(node.value.value)
            comment = lines[node.lineno - 1].partition("  # ")[2]
            about = FILES.get(value) or cell(comment)
            if not about:
                sys.exit(f"{value!r} in storage/paths.py has no comment; give it one")
            names.append((code(value), about))
        returns = getattr(node, "returns", None)
        is_name = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if is_name and returns and ast.unparse(returns) == "str":
            arguments = [example(a) for a in node.args.args]
            about = (ast.get_docstring(node) or "").splitlines()[0]
            shapes.append((code(getattr(paths, node.name)(*arguments)), cell(about)))
    return page(
        "Files of a run",
        "dreambooth_ray/storage/paths.py",
        "Everything lies below `storage.uri`: runs in `runs/RUN_ID/`, class images in "
        "`priors/HASH/`, uploaded photographs in `photographs/HASH/`. Other files are read only "
        "after the manifest that names them: a write is seen whole or not at all.",
        "## Names",
        table(("name", "what it is"), *names),
        "## Names with a number or a hash",
        "Numbers are examples. An artifact is a folder, its manifest and a pointer to it.",
        table(("looks like", "what it is"), *shapes),
    )


def example(argument: ast.arg) -> object:
    """A value for an argument of a function in storage/paths.py."""
    if argument.arg == "lease":
        return 2
    is_number = argument.annotation is not None and ast.unparse(argument.annotation) == "int"
    return 400 if is_number else PLACEHOLDERS.get(argument.arg, argument.arg.upper())


# Handbooks


def handbook(source: str, target: str) -> str:
    """A copy of a handbook, with links that work in the site."""
    text = (ROOT / source).read_text()
    text = re.sub(r"^!\[[^\]]*\]\((?!http)[^)]+\)\n+", "", text, flags=re.MULTILINE)

    def linked(match: re.Match[str]) -> str:
        words, link = match.groups()
        if link.startswith(("http", "#")):
            return match.group(0)
        file, _, anchor = link.partition("#")
        path = os.path.relpath((ROOT / source).parent / file, ROOT)
        if path not in PAGES:
            return code(path)
        to = os.path.relpath(DOCS / PAGES[path], (DOCS / target).parent)
        return f"[{words}]({to}{'#' + anchor if anchor else ''})"

    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", linked, text)
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{MADE.format(source=source)}\n{rest}"


def all_pages() -> dict[Path, str]:
    """What every page that is made should hold."""
    made = {
        "reference/configuration.md": configuration(),
        "reference/command-line.md": command_line(),
        "reference/http-api.md": http_api(),
        "reference/metrics.md": metrics(),
        "reference/run-files.md": run_files(),
    }
    made |= {target: handbook(source, target) for source, target in HANDBOOKS.items()}
    return {DOCS / name: text for name, text in made.items()}


def main() -> None:
    """Write all pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is stale")
    is_check = parser.parse_args().check
    stale = {
        path: text
        for path, text in all_pages().items()
        if not path.is_file() or path.read_text() != text
    }
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        if is_check:
            print(f"{name} is stale; run python docs/make_reference.py", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")
    if stale and is_check:
        sys.exit(1)


if __name__ == "__main__":
    main()
