"""From a YAML recipe and dotted overrides to a Config, with errors for people."""

import difflib
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dreambooth_ray.config.key_types import KeyType
from dreambooth_ray.config.machines import StorageConfig
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.section import expand_home
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.config.training import FAMILY_LOSS_KEYS
from dreambooth_ray.config.validation_errors import explain_error
from dreambooth_ray.config.yaml_text import parse_value, parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError

_Schema = TypeVar("_Schema", bound=BaseModel)


def load_config(recipe: str, overrides: list[str]) -> Config:
    """Read a recipe, apply `key.path=value` overrides in order, validate.

    recipe: a YAML file, or the name of a shipped one ("toy-robot.yaml" or "toy-robot")
    raises: ConfigError naming the key at fault
    """
    recipe_text, recipe_origin = _read_recipe(recipe)
    return parse_config(recipe_text, recipe_origin, overrides)


def parse_config(text: str, origin: str, overrides: list[str]) -> Config:
    """Like load_config, for a text already read from `origin`."""
    return _parse_and_validate(text, origin, overrides, Config)


def load_serve_config(path: str | None, overrides: list[str]) -> ServeConfig:
    """The endpoint's configuration: a YAML file, or all defaults, with overrides.

    raises: ConfigError naming the key at fault
    """
    if path is None:
        return _parse_and_validate("", "the defaults", overrides, ServeConfig)
    try:
        config_text = read_text_file(Path(expand_home(path)))
    except OSError as error:
        raise ConfigError(f"CONFIG={path!r} can't be read: {error}; give a YAML file") from error
    return _parse_and_validate(config_text, path, overrides, ServeConfig)


def _parse_and_validate(
    text: str, origin: str, overrides: list[str], schema: type[_Schema]
) -> _Schema:
    config_tree = parse_yaml(text, origin, schema) or {}
    if not isinstance(config_tree, dict):
        raise ConfigError(f"{origin} holds no mapping of keys; see recipes for the form")
    method = _read_method(config_tree)
    for key in _find_replaced_keys(overrides):
        _remove_key(config_tree, key)
    for override in overrides:
        _apply_override(config_tree, override, schema)
    if _read_method(config_tree) != method:
        _remove_recipe_rates(config_tree, overrides)
    _refuse_unknown_keys(config_tree, schema, "", origin, list_config_keys(schema))
    try:
        return schema.model_validate(config_tree)
    except ValidationError as error:
        raise ConfigError("; ".join(explain_error(e) for e in error.errors())) from error


def override_config(config: Config, overrides: list[str]) -> Config:
    """The same configuration with `key.path=value` overrides applied."""
    overridden_config = parse_config(dump_config(config), "the configuration", overrides)
    if overridden_config.storage.options or not config.storage.options:
        return overridden_config
    # Options are in no dump.
    storage_config = overridden_config.storage.model_copy(
        update={"options": config.storage.options}
    )
    return overridden_config.model_copy(update={"storage": storage_config})


def parse_storage_option_overrides(overrides: list[str]) -> dict[str, Any]:
    """storage.options alone, from `storage.options.name=value` overrides."""
    override_tree: dict[str, Any] = {}
    for override in overrides:
        _apply_override(override_tree, override, Config)
    storage_options = override_tree.get("storage", {}).get("options", {})
    if not isinstance(storage_options, dict):
        raise ConfigError("storage.options is a mapping: storage.options.endpoint_url=...")
    return storage_options


# A shipped recipe leaves them to the command line, and storage does not depend on them.
SUBJECT_OF_NO_MATTER = ("subject.photos=.", "subject.class_noun=any")


def parse_storage_overrides(overrides: list[str]) -> StorageConfig:
    """The storage section alone, from `storage.key=value` overrides.

    raises: ConfigError naming the key at fault
    """
    return parse_config("", "the command line", [*SUBJECT_OF_NO_MATTER, *overrides]).storage


def dump_config(config: Config, exclude: Collection[str] = ()) -> str:
    """The resolved configuration as YAML; parse_config reads it back to an equal Config.

    What nobody has set and the model's family chooses is left out.
    exclude: sections that are left out
    """
    config_tree = config.model_dump(mode="json", exclude=set(exclude))
    for section_name in ("prior", "sample"):
        for param_name in (
            SamplingParams.model_fields.keys() - getattr(config, section_name).given_values
        ):
            del config_tree[section_name][param_name]
    if "text_encoder" not in config.train.model_fields_set:
        del config_tree["train"]["text_encoder"]
    for key in FAMILY_LOSS_KEYS:
        if key not in config.loss.model_fields_set:
            del config_tree["loss"][key]
    return yaml.safe_dump(config_tree, sort_keys=False)


def list_recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    recipe_folder = files("dreambooth_ray") / "recipes"
    return sorted(f.name for f in recipe_folder.iterdir() if f.name.endswith(".yaml"))


def _read_recipe(recipe: str) -> tuple[str, str]:
    recipe_path = Path(expand_home(recipe))
    if recipe_path.is_file():
        return read_text_file(recipe_path), str(recipe_path)
    recipe_name = recipe_path.name if recipe_path.suffix else f"{recipe_path.name}.yaml"
    if recipe_name in list_recipe_names() and str(recipe_path) in (recipe_name, recipe_path.stem):
        return (files("dreambooth_ray") / "recipes" / recipe_name).read_text("utf-8"), recipe_name
    recipe_list_text = ", ".join(list_recipe_names())
    raise ConfigError(f"no recipe {recipe!r}: it is neither a file nor one of {recipe_list_text}")


def _apply_override(tree: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    key, equals, value_text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    key_path, annotation = _split_key_by_schema(schema, key)
    section_values = tree
    for section_name in key_path[:-1]:
        subsection_values = section_values.setdefault(section_name, {})
        if not isinstance(subsection_values, dict):
            raise ConfigError(f"{key}: {section_name!r} is a value, not a section; check the key")
        section_values = subsection_values
    try:
        section_values[key_path[-1]] = parse_value(value_text, annotation)
    except ValueError as error:
        raise ConfigError(f"{key}={value_text!r}: {error}") from error


def _split_key_by_schema(schema: type[BaseModel], key: str) -> tuple[list[str], Any]:
    """The names on a key's way, and its type; a name that users choose may hold dots.

    Of a key that is not known, the type is anything: it is refused later, with what it is like.
    """
    annotation: Any = schema
    key_path, name_parts = list[str](), key.split(".")
    while name_parts:
        key_type = KeyType(annotation)
        section = key_type.section()
        if section is not None and name_parts[0] in section.model_fields:
            key_path.append(name_parts.pop(0))
            annotation = section.model_fields[key_path[-1]].annotation
        elif key_type.is_free_mapping():
            num_parts_after = 1 if key_type.child("").section() and len(name_parts) > 1 else 0
            num_name_parts = len(name_parts) - num_parts_after
            key_path.append(".".join(name_parts[:num_name_parts]))
            name_parts, annotation = name_parts[num_name_parts:], key_type.value_annotation()
        else:
            return [*key_path, *name_parts], Any
    return key_path, annotation


# Two ways to say one thing: an override takes the place of either.
_INSTEAD = {
    "train.images": "train.steps",
    "train.steps": "train.images",
    "subjects": "subject",
}


def _find_replaced_keys(overrides: list[str]) -> set[str]:
    keys = {override.partition("=")[0] for override in overrides}
    return {_INSTEAD[key] for key in keys if key in _INSTEAD}


def combine_overrides(overrides: list[str], later: list[str]) -> list[str]:
    """Overrides and later ones that go before them, also where they say it by another key."""
    replaced_keys = _find_replaced_keys(later)
    return [o for o in overrides if o.partition("=")[0] not in replaced_keys] + later


def _remove_key(tree: dict[str, Any], key: str) -> None:
    section, _, leaf = key.partition(".")
    if not leaf:
        tree.pop(section, None)
    elif isinstance(tree.get(section), dict):
        tree[section].pop(leaf, None)


def _read_method(tree: dict[str, Any]) -> object:
    train = tree.get("train")
    return train.get("method", "full") if isinstance(train, dict) else "full"


def _remove_recipe_rates(tree: dict[str, Any], overrides: list[str]) -> None:
    """Leave rates of a recipe to the defaults where another method takes the place of its own."""
    overridden_keys = {override.partition("=")[0] for override in overrides}
    for key in ("train.lr", "train.text_encoder_lr"):
        if key not in overridden_keys and "train" not in overridden_keys:
            _remove_key(tree, key)


def _refuse_unknown_keys(
    tree: dict[str, Any], schema: type[BaseModel], prefix: str, origin: str, known_keys: list[str]
) -> None:
    for key, value in tree.items():
        field = schema.model_fields.get(key)
        if field is None:
            unknown_key = _first_leaf_key(f"{prefix}{key}", value)
            raise ConfigError(
                f"unknown key {unknown_key} ({origin}){_suggest_key(unknown_key, known_keys)}"
            )
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key} is a section of keys, not a value: got {value!r}")
            _refuse_unknown_keys(value, section, f"{prefix}{key}.", origin, known_keys)


def _first_leaf_key(key: str, value: object) -> str:
    """The first leaf below an unknown key: trian: {steps: 5} is trian.steps."""
    while isinstance(value, dict) and value:
        leaf = next(iter(value))
        key, value = f"{key}.{leaf}", value[leaf]
    return key


def _suggest_key(key: str, known_keys: list[str]) -> str:
    # The leaf is what people know a setting by: it decides, the section breaks ties.
    leaf = key.rpartition(".")[2]
    ranked_keys = sorted(
        known_keys,
        key=lambda k: (
            _measure_text_similarity(leaf, k.rpartition(".")[2]),
            _measure_text_similarity(key, k),
        ),
    )
    nearest_key = ranked_keys[-1]
    if _measure_text_similarity(leaf, nearest_key.rpartition(".")[2]) >= 0.6:
        return f"; did you mean {nearest_key}?"
    return f"; known keys: {', '.join(known_keys)}"


def _measure_text_similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(a=one, b=other).ratio()


def list_config_keys(schema: type[BaseModel] = Config, at: str = "") -> list[str]:
    """Every dotted key of the tree."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += list_config_keys(section, f"{at}{name}.")
        else:
            keys.append(f"{at}{name}")
    return keys
