"""Stored weights against the networks that configurations make.

For families without tables of shapes of their own. Nothing is loaded, and torch and diffusers are
imported, which takes seconds.
"""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily, Part
from dreambooth_ray.models.pipeline_checks import read_shapes

# Levels of names that transformers' releases do not agree on.
_LEVELS = ("text_model.", "model.")


def check_networks(directory: Path, family: ModelFamily) -> None:
    """Every tensor of every part is there, and of its shape.

    raises: ConfigError naming the part and the tensor
    """
    shapes_by_part = {part: read_shapes(directory, part) for part in family.networks}
    for part, part_shapes in shapes_by_part.items():
        expected_shapes = _build_expected_shapes(directory, part)
        stored_shapes = {_strip_level_prefixes(name): shape for name, shape in part_shapes.items()}
        for name, shape in expected_shapes.items():
            if stored_shapes.get(name) != shape:
                raise ConfigError(
                    f"{directory / part.name}: by config.json {name} is {shape}, and the weights "
                    f"have {stored_shapes.get(name) or 'no such tensor'}; the files are of "
                    "different models"
                )


def _build_expected_shapes(directory: Path, part: Part) -> dict[str, list[int]]:
    """Less tensors that are others under a second name, which files leave out."""
    import torch  # noqa: PLC0415  takes seconds

    from dreambooth_ray.models.components import (  # noqa: PLC0415
        build_empty_network,
        quiet_libraries,
    )
    from dreambooth_ray.models.network_loading import explained_loading  # noqa: PLC0415

    quiet_libraries()
    with explained_loading(directory / part.name), torch.device("meta"):
        network = build_empty_network(directory, part)
    # Files have a tied weight once, by the first of its names.
    named_weights = network.state_dict(keep_vars=True)
    names_by_tensor_id = {id(tensor): name for name, tensor in reversed(named_weights.items())}
    return {
        _strip_level_prefixes(name): list(named_weights[name].shape)
        for name in sorted(names_by_tensor_id.values())
    }


def _strip_level_prefixes(name: str) -> str:
    for prefix in _LEVELS:
        name = name.removeprefix(prefix)
    return name
