"""Stored weights against those that a part's configuration demands, by the files' headers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.weight_files import find_weights

Shapes = dict[str, list[int]]


def read_counts(path: Path, *names: str, **defaults: int) -> dict[str, int]:
    """Keys of a configuration that are whole numbers above 0.

    defaults: where a file leaves them out
    raises: ConfigError naming the key
    """
    return select_positive_counts(path, defaults | read_json(path), *names, *defaults)


def select_positive_counts(path: Path, config: Mapping[str, Any], *names: str) -> dict[str, int]:
    """As `read_counts`, of what a file holds or of a part of it. path: to name in an error"""
    for name in names:
        if type(config.get(name)) is not int or config[name] < 1:
            raise ConfigError(
                f"{path}: {name}={config.get(name)!r} must be a whole number above 0; copy the "
                "model directory again"
            )
    return {name: config[name] for name in names}


def read_count_list(
    path: Path, config: Mapping[str, Any], name: str, default: Sequence[int]
) -> list[int]:
    """A key that is a list of whole numbers, none below 0; raises ConfigError naming it."""
    count_list = config.get(name, list(default))
    if not isinstance(count_list, list) or not all(type(x) is int and x >= 0 for x in count_list):
        raise ConfigError(f"{path}: {name}={count_list!r} must be a list of whole numbers")
    return count_list


def read_section(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A key that is an object, empty where it is not there; raises ConfigError naming it."""
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {name}={section!r} must be an object of settings")
    return section


def check_shapes(
    folder: Path,
    expected: Mapping[str, list[int]],
    unread: tuple[str, ...] = (),
    dropped_prefix: str = "",
) -> None:
    """raises: ConfigError naming a tensor that is missing, of another shape, or nowhere used

    expected: of every tensor; unread: tensors that may be there as well
    dropped_prefix: of stored names, which some libraries write and others do not
    """
    file_shapes = find_weights(folder, folder.name).read_shapes()
    stored_shapes = {
        tensor_name.removeprefix(dropped_prefix): shape
        for tensor_name, shape in file_shapes.items()
    }
    for tensor_name, shape in expected.items():
        if stored_shapes.get(tensor_name) != shape:
            stored_shape = stored_shapes.get(tensor_name) or "no such tensor"
            raise ConfigError(
                f"{folder}: by config.json {tensor_name} is {shape}, and the weights have "
                f"{stored_shape}; the files are of different models"
            )
    if unexpected_names := sorted(stored_shapes.keys() - expected.keys() - set(unread)):
        raise ConfigError(
            f"{folder}: the weights have {unexpected_names[0]}, and by config.json there is no "
            "such tensor; the files are of different models"
        )


def repeat_shapes(prefix: str, count: int, shapes: Mapping[str, list[int]]) -> Shapes:
    """The shapes of so many equal blocks. prefix: before their numbers"""
    return {
        f"{prefix}.{block_index}.{tensor_name}": list(shape)
        for block_index in range(count)
        for tensor_name, shape in shapes.items()
    }
