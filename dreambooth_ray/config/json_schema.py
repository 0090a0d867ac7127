"""JSON Schema of recipes and of the endpoint's configuration, for editors and other programs."""

from copy import deepcopy
from typing import Any, Literal

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.serving import ServeConfig

Kind = Literal["recipe", "serve"]


class _UntitledSchema(GenerateJsonSchema):
    """Without titles: they only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: Any, mode: Any = "validation") -> JsonSchemaValue:
        schema_tree = super().generate(schema, mode)
        for definition in schema_tree.get("$defs", {}).values():
            definition.pop("title", None)
        return {"$schema": self.schema_dialect, **schema_tree}


def json_schema(kind: Kind) -> dict[str, Any]:
    """The schema of a recipe, or of the file that `dreambooth serve` takes."""
    return _recipe_schema() if kind == "recipe" else _serve_schema()


def _recipe_schema() -> dict[str, Any]:
    """A recipe may leave keys of its one subject to the command line; those of several it can't."""
    schema_tree = Config.model_json_schema(schema_generator=_UntitledSchema)
    subject_schema = deepcopy(schema_tree["$defs"]["SubjectConfig"])
    del subject_schema["required"]
    schema_tree["properties"]["subject"] = subject_schema
    del schema_tree["required"]
    schema_tree["anyOf"] = [{"required": ["subject"]}, {"required": ["subjects"]}]
    return {**schema_tree, "title": "A recipe of dreambooth_ray"}


def _serve_schema() -> dict[str, Any]:
    schema_tree = ServeConfig.model_json_schema(schema_generator=_UntitledSchema)
    return {**schema_tree, "title": "The endpoint of dreambooth_ray"}
