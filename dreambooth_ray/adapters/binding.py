"""Every key of an adapter's file, bound to a layer of a model by its name and its shape.

Nothing heavy is imported: a file that does not fit is refused before anything is loaded.

Legend: r rank, O and I a layer's output and flattened input, as the file has the layer.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dreambooth_ray.adapters.file_keys import group_keys, shorten_key
from dreambooth_ray.adapters.layer_table import LayerPlace, LayerTable
from dreambooth_ray.adapters.other_families import guess_family
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import list_families
from dreambooth_ray.models.peft_files import ADAPTER_METADATA_KEY
from dreambooth_ray.models.weight_files import read_header_and_metadata

MAX_RANK = 4096
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerBinding:
    """A file's layer and what it is of the model's. keys: by role; rank: of its product"""

    file_layer: str
    places: tuple[LayerPlace, ...]
    keys: Mapping[str, str]
    kind: str
    rank: int | None


@dataclass(frozen=True)
class BoundAdapterFile:
    """A file, every key of which is bound. metadata: what diffusers or peft say of its scales."""

    layers: tuple[LayerBinding, ...]
    metadata: Mapping[str, Any]

    @property
    def kinds(self) -> set[str]:
        """Of its layers: lora, loha, lokr, and dora where one has magnitudes."""
        return {layer.kind for layer in self.layers} | {
            "dora" for layer in self.layers if {"magnitude", "dora_scale"} & layer.keys.keys()
        }


def bind_file(path: Path, table: LayerTable) -> BoundAdapterFile:
    """Bind a safetensors file to a model's layers.

    raises: ConfigError for a file that is damaged, a key that binds nowhere, a shape that does not
        fit, or a file of another family, named
    """
    header, metadata = read_header_and_metadata(path)
    for key, info in header.items():
        if (dtype := info["dtype"]) not in _DTYPES:
            raise ConfigError(f"{shorten_key(key)} is of type {dtype}, which holds no weights")
    shapes = {key: tuple(info["shape"]) for key, info in header.items()}
    return bind_keys(shapes, table, read_peft_metadata(metadata))


def bind_keys(
    shapes: Shapes, table: LayerTable, metadata: Mapping[str, Any] | None = None
) -> BoundAdapterFile:
    """As `bind_file`, of shapes by key."""
    if not shapes:
        raise ConfigError("it holds no tensors")
    try:
        keys_by_file_layer = group_keys(shapes)
    except ConfigError as error:
        raise ConfigError(f"{error}{_explain_family(shapes, table)}") from error
    file_layer_by_place: dict[tuple[str, str], str] = {}
    layers = []
    for file_layer, keys in keys_by_file_layer.items():
        places = table.find(file_layer)
        if not places:
            raise ConfigError(
                f"{shorten_key(next(iter(keys.values())))} binds to no layer of this model of "
                f"{table.family.title}{_explain_family(keys_by_file_layer, table)}"
            )
        for place in places:
            other_layer = file_layer_by_place.setdefault((place.part, place.layer), file_layer)
            if other_layer != file_layer:
                raise ConfigError(
                    f"{shorten_key(file_layer)} and {shorten_key(other_layer)} are both for "
                    f"{place.name}; files of two trainers may have been put together"
                )
        layers.append(_check_layer(file_layer, places, keys, shapes, table))
    return BoundAdapterFile(tuple(layers), metadata or {})


def _check_layer(
    file_layer: str,
    places: list[LayerPlace],
    keys: Mapping[str, str],
    shapes: Shapes,
    table: LayerTable,
) -> LayerBinding:
    shapes_by_role = {role: shapes[key] for role, key in keys.items()}
    expected_weight_size = (places[0].num_file_rows, prod(places[0].shape[1:]))
    try:
        kind, weight_size, rank = measure_factors(shapes_by_role)
    except KeyError as error:
        raise ConfigError(
            f"{shorten_key(file_layer)} has no {error.args[0]} beside {', '.join(sorted(keys))}; "
            "the file is not whole"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{shorten_key(file_layer)} has factors that do not go together: {error}"
        ) from error
    if weight_size != expected_weight_size:
        raise ConfigError(
            f"{shorten_key(file_layer)} changes a layer of {weight_size[0]} by {weight_size[1]}, "
            f"and {places[0].name} is {expected_weight_size[0]} by {expected_weight_size[1]}; it "
            f"is of another model{_explain_family([file_layer], table)}"
        )
    if rank is not None and not 0 < rank <= MAX_RANK:
        raise ConfigError(f"{shorten_key(file_layer)} is of rank {rank}; 1 to {MAX_RANK} are taken")
    _check_magnitude(file_layer, places, shapes_by_role, expected_weight_size)
    if prod(shapes_by_role.get("alpha", ())) != 1:
        raise ConfigError(f"{shorten_key(keys['alpha'])} is no single number")
    return LayerBinding(file_layer, tuple(places), keys, kind, rank)


def measure_factors(shapes: Shapes) -> tuple[str, tuple[int, int], int | None]:
    """(kind, (O, I), rank) by the shapes of a layer's factors.

    raises: KeyError with a missing role, ValueError where two do not go together
    """
    measure_by_kind: dict[str, Callable[..., tuple[tuple[int, int], int | None]]] = {
        "lora": _measure_lora, "embedding": _measure_embedding_lora,
        "loha": _measure_loha, "lokr": _measure_lokr,
    }  # fmt: skip
    kinds = {_KIND_OF_ROLE[role] for role in shapes if role in _KIND_OF_ROLE}
    if len(kinds) != 1:
        if not kinds:
            raise KeyError("factors")
        raise ValueError(f"of {' and '.join(sorted(kinds))} at once")
    (kind,) = kinds
    if any(not all(shape) for shape in shapes.values()):
        raise ValueError("one of them is empty")
    weight_size, rank = measure_by_kind[kind](shapes)
    return ("lora" if kind == "embedding" else kind), weight_size, rank


_KIND_OF_ROLE = {
    "down": "lora", "up": "lora", "mid": "lora",
    "embedding_down": "embedding", "embedding_up": "embedding",
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
                    "loha"),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
                     "lokr_t2"), "lokr"),
}  # fmt: skip


def _measure_lora(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], int]:
    down_shape, up_shape, mid_shape = shapes["down"], shapes["up"], shapes.get("mid")
    _match_shapes(len(down_shape) in (2, 4) and len(up_shape) in (2, 4), down_shape, up_shape)
    _match_shapes(up_shape[1] == down_shape[0] and prod(up_shape[2:]) == 1, down_shape, up_shape)
    if mid_shape is None:
        return (up_shape[0], prod(down_shape[1:])), down_shape[0]
    _match_shapes(
        len(mid_shape) == 4
        and mid_shape[:2] == (down_shape[0], down_shape[0])
        and prod(down_shape[2:]) == 1,
        down_shape,
        mid_shape,
    )
    return (up_shape[0], down_shape[1] * prod(mid_shape[2:])), down_shape[0]


def _measure_embedding_lora(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], int]:
    """peft's of embeddings: (r, V) and (D, r), of a weight (V, D)."""
    down, up = shapes["embedding_down"], shapes["embedding_up"]
    _match_shapes(len(down) == len(up) == 2 and down[0] == up[1], down, up)
    return (down[1], up[0]), down[0]


def _measure_loha(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], int]:
    weight_sizes = set()
    for half_number in (1, 2):
        left_shape, right_shape = shapes[f"hada_w{half_number}_a"], shapes[f"hada_w{half_number}_b"]
        kernel_shape = shapes.get(f"hada_t{half_number}")
        _match_shapes(len(left_shape) == 2 and len(right_shape) == 2, left_shape, right_shape)
        if kernel_shape is None:
            _match_shapes(left_shape[1] == right_shape[0], left_shape, right_shape)
            weight_sizes.add((left_shape[0], right_shape[1]))
        else:  # the factors of a kernel have the rank first
            _match_shapes(
                len(kernel_shape) == 4 and kernel_shape[:2] == (left_shape[0], right_shape[0]),
                left_shape,
                right_shape,
                kernel_shape,
            )
            weight_sizes.add((left_shape[1], right_shape[1] * prod(kernel_shape[2:])))
    _match_shapes(len(weight_sizes) == 1, *weight_sizes)
    return weight_sizes.pop(), shapes["hada_w1_b"][0]


def _measure_lokr(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], int | None]:
    rank = None
    if "lokr_w1" in shapes:
        first_shape = shapes["lokr_w1"]
    else:
        left_shape, right_shape = shapes["lokr_w1_a"], shapes["lokr_w1_b"]
        _match_shapes(
            len(left_shape) == len(right_shape) == 2 and left_shape[1] == right_shape[0],
            left_shape,
            right_shape,
        )
        first_shape, rank = (left_shape[0], right_shape[1]), right_shape[0]
    _match_shapes(len(first_shape) == 2, first_shape)
    if "lokr_w2" in shapes:
        second_shape = shapes["lokr_w2"]
    else:
        left_shape, right_shape, kernel_shape = (
            shapes["lokr_w2_a"],
            shapes["lokr_w2_b"],
            shapes.get("lokr_t2"),
        )
        if kernel_shape is None:
            _match_shapes(
                len(left_shape) == 2 and left_shape[1] == right_shape[0], left_shape, right_shape
            )
            second_shape, rank = (left_shape[0], *right_shape[1:]), right_shape[0]
        else:
            _match_shapes(
                len(kernel_shape) == 4 and kernel_shape[:2] == (left_shape[0], right_shape[0]),
                left_shape,
                right_shape,
                kernel_shape,
            )
            second_shape, rank = (left_shape[1], right_shape[1], *kernel_shape[2:]), right_shape[0]
    _match_shapes(len(second_shape) in (2, 4), second_shape)
    return (first_shape[0] * second_shape[0], first_shape[1] * prod(second_shape[1:])), rank


def _match_shapes(is_right: bool, *shapes: tuple[int, ...]) -> None:
    if not is_right:
        raise ValueError(" and ".join(str(list(shape)) for shape in shapes))


def _check_magnitude(
    file_layer: str, places: list[LayerPlace], shapes: Shapes, weight_size: tuple[int, int]
) -> None:
    role = "magnitude" if "magnitude" in shapes else "dora_scale"
    if role not in shapes:
        return
    axis = find_magnitude_axis(role, shapes[role], (weight_size[0], *places[0].shape[1:]))
    if axis is None:
        raise ConfigError(
            f"{shorten_key(file_layer)} has magnitudes {list(shapes[role])}, which are neither "
            f"those of {weight_size[0]} outputs nor of {places[0].shape[1]} inputs"
        )
    if axis == 1 and not all(place.is_whole for place in places):
        raise ConfigError(
            f"{shorten_key(file_layer)} has magnitudes over the inputs of a layer that is several "
            f"here ({places[0].name} and others); they can't be told apart"
        )


def find_magnitude_axis(role: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> int | None:
    """0 for magnitudes of a weight's outputs, 1 of its inputs, None where they fit neither.

    role: peft's are always of outputs; LyCORIS and OneTrainer say by their shape
    """
    num_magnitude_values = prod(shape)
    if role == "dora_scale" and len(shape) > 1 and shape[0] == 1 and weight[0] != 1:
        return 1 if num_magnitude_values == weight[1] else None
    return 0 if num_magnitude_values == weight[0] else None


def _explain_family(names: Any, table: LayerTable) -> str:
    guessed_family = guess_family(names)
    if guessed_family is None or guessed_family in table.family.title:
        return ""
    is_family_known = any(guessed_family in family.title for family in list_families())
    unknown_family_note = "" if is_family_known else ", a family that is not known here"
    return f"; by its names it is of {guessed_family}{unknown_family_note}"


def read_peft_metadata(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What diffusers wrote of an adapter's settings, `part.setting` to value.

    raises: ConfigError
    """
    try:
        peft_settings = json.loads(metadata.get(ADAPTER_METADATA_KEY, "{}"))
    except ValueError as error:
        raise ConfigError(f"its metadata {ADAPTER_METADATA_KEY} is no JSON: {error}") from error
    if not isinstance(peft_settings, dict):
        raise ConfigError(f"its metadata {ADAPTER_METADATA_KEY} is no JSON object")
    return peft_settings
