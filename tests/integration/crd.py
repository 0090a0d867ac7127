"""KubeRay's custom resource definitions as JSON schemas, as strict as the API server is."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cel
import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

Tree = dict[str, Any]


def _evaluate_rules(
    _: Any, rules: list[Tree], instance: Any, __: Tree
) -> Iterator[ValidationError]:
    """Rules in the Common Expression Language, as for a new object: nothing was there before."""
    for rule in rules:
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": instance}):
            yield ValidationError(rule.get("message", rule["rule"]))


_Validator = validators.extend(Draft202012Validator, {"x-kubernetes-validations": _evaluate_rules})


@cache
def read_schemas(folder: Path) -> dict[tuple[str, str], Tree]:
    """(apiVersion, kind) to JSON schema, for every version in the files of a folder."""
    schemas = {}
    for path in sorted(folder.glob("*.yaml")):
        spec = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            schemas[key] = _tighten(version["schema"]["openAPIV3Schema"], root=True)
    return schemas


def _tighten(schema: Tree, root: bool = False) -> Tree:
    """As the API server reads it: unknown fields are errors, defaults are filled in."""
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    properties = schema.get("properties", {})
    for child in properties.values():
        _tighten(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _tighten(schema[key])
    closed = not schema.get("x-kubernetes-preserve-unknown-fields")
    # metadata of the object itself is the API server's, not the definition's.
    if properties and closed and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    if root:
        properties["metadata"] = {"type": "object"}
    required = [k for k in schema.get("required", []) if "default" not in properties.get(k, {})]
    if "required" in schema:
        schema["required"] = required
    return schema


def faults(schema: Tree, resource: Tree) -> list[str]:
    """What the schema has against a resource, each with its place."""
    found = _Validator(schema).iter_errors(_without_nulls(resource))
    return [f"{'.'.join(str(p) for p in e.absolute_path)}: {e.message}" for e in found]


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _without_nulls(v) for k, v in tree.items() if v is not None}
    if isinstance(tree, list):
        return [_without_nulls(v) for v in tree]
    return tree
