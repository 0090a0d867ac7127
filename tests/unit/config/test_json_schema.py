"""The schemas that ship are those of the code, and what ships is valid by them."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from dreambooth_ray.cli.main import app
from dreambooth_ray.config.json_schema import Kind, json_schema
from dreambooth_ray.config.learning_rate_rules import check_rates
from dreambooth_ray.config.load import dump_config, list_recipe_names, load_config
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.model_directory import check_resolution, model_directory

RECIPES = files("dreambooth_ray") / "recipes"


def find_errors(kind: Kind, tree: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(json_schema(kind)).iter_errors(tree)]


@pytest.mark.parametrize("kind", ["recipe", "serve"])
def test_the_file_that_ships_is_what_the_verb_prints(kind: Kind) -> None:
    """If not: dreambooth schema KIND > dreambooth_ray/recipes/KIND.schema.json."""
    printed = CliRunner().invoke(app, ["schema", kind]).output
    assert printed == (RECIPES / f"{kind}.schema.json").read_text()
    Draft202012Validator.check_schema(json_schema(kind))


@pytest.mark.parametrize("name", list_recipe_names())
def test_a_recipe_names_its_schema_and_is_valid(name: str) -> None:
    text = (RECIPES / name).read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert find_errors("recipe", yaml.safe_load(text)) == []


@pytest.mark.parametrize("name", [n for n in list_recipe_names() if n.startswith(("sd15", "sd21"))])
def test_recipes_by_memory_go_with_the_published_models(
    request: pytest.FixtureRequest, name: str
) -> None:
    model: Path = request.getfixturevalue(name.partition("-")[0])
    settings = ["subject.photos=p", "subject.class_noun=dog"]
    assert load_config(name, settings).model.uri.startswith("stable-diffusion-")
    config = load_config(name, [*settings, f"model.uri={model}"])
    directory = model_directory(config.model.uri)
    check_resolution(directory, config.train.side_px)
    check_training_settings(config, directory)
    assert config.train.side_px == {"sd15": 512, "sd21": 768}[name[:4]]
    assert config.train.precision == "bf16-mixed"
    assert config.train.gradient_checkpointing == ("80gb" not in name)
    assert check_rates(config) == []


def test_there_is_a_recipe_for_each_model_method_and_memory() -> None:
    sizes = ("lora-8gb", "lora-12gb", "full-24gb", "full-80gb")
    names = {f"sd{version}-{size}.yaml" for version in (15, 21) for size in sizes}
    assert names <= set(list_recipe_names())


def test_a_resolved_configuration_is_valid() -> None:
    config = load_config("toy-robot.yaml", ["train.precision=32", "cluster.workers={min: 1}"])
    assert find_errors("recipe", yaml.safe_load(dump_config(config))) == []


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, "is not valid under any"),
        ({"subject": {}, "trian": {}}, "'trian' was unexpected"),
        ({"subject": {}, "train": {"steps": 0}}, "0 is less than the minimum"),
        ({"subjects": [{"photos": "p"}]}, "'class_noun' is a required property"),
    ],
)
def test_what_load_refuses_is_not_valid(tree: Any, words: str) -> None:
    assert any(words in message for message in find_errors("recipe", tree))


def test_what_may_be_left_out_is() -> None:
    assert find_errors("recipe", {"subject": {}, "train": {"precision": 32}}) == []
    assert find_errors("serve", {}) == []
