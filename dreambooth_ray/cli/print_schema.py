"""`dreambooth schema`: what may stand in a configuration file, for editors."""

import json
from typing import Annotated, Literal

import typer

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


def schema(
    kind: Annotated[
        Literal["recipe", "serve"], typer.Argument(help="of recipes, or of what `serve` takes")
    ] = "recipe",
) -> None:
    """Print the JSON Schema of recipes or of the endpoint's configuration."""
    from dreambooth_ray.config.json_schema import json_schema

    print(json.dumps(json_schema(kind), indent=1))
