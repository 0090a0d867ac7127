"""Damages that a model directory can have, of any family and any of its parts.

Each takes a directory that was good, and the name of a part in it; it changes the directory, and a
refusal has to name what `Damage.said` gives.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families.tiny_models import change_json

POISONED = "POISONED"  # the file in the directory that its pickle makes when it is read


@dataclass(frozen=True)
class Damage:
    """apply: to a directory's part. said: a word of the refusal; PART is the part's name

    weights: whether it is for parts with weights alone
    """

    apply: Callable[[Path, str], None]
    said: str = "PART"
    weights: bool = True

    def expected_word(self, part: str) -> str:
        return self.said.replace("PART", part)


def remove_part(directory: Path, part: str) -> None:
    shutil.rmtree(directory / part)


def remove_config(directory: Path, part: str) -> None:
    (directory / part / "config.json").unlink()


def remove_weights(directory: Path, part: str) -> None:
    for path in (directory / part).glob("*.safetensors*"):
        path.unlink()


def name_other_class(directory: Path, part: str) -> None:
    """In model_index.json, of the same library."""
    index = json.loads((directory / "model_index.json").read_text())
    library = index[part][0]
    other = "AutoencoderTiny" if library == "diffusers" else "BertModel"
    change_json(directory / "model_index.json", {part: [library, other]})


def name_other_class_in_part(directory: Path, part: str) -> None:
    path = directory / part / "config.json"
    if "_class_name" in json.loads(path.read_text()):
        change_json(path, {"_class_name": "AutoencoderTiny"})
    else:
        change_json(path, {"architectures": ["BertModel"], "model_type": "bert"})


def name_other_pipeline(directory: Path, part: str) -> None:
    change_json(directory / "model_index.json", {"_class_name": "PixArtSigmaPipeline"})


def put_nan(directory: Path, part: str) -> None:
    """One weight of the last tensor."""
    path = _weights_path(directory / part)
    weights = load_file(path)
    name = max(key for key, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[-1] = float("nan")
    _save(weights, path)


def pickle_weights(directory: Path, part: str) -> None:
    """The weights are there as a pickle alone, and reading it makes the file POISONED."""
    path = _weights_path(directory / part)
    weights: dict[str, Any] = dict(load_file(path))
    weights["poison"] = _Poison(directory / POISONED)
    # transformers' and diffusers' own name for a pickle.
    stem = "pytorch_model" if path.stem == "model" else path.stem
    torch.save(weights, path.with_name(f"{stem}.bin"))
    path.unlink()


def truncate_shard(directory: Path, part: str) -> None:
    """Two shards, the second one cut off."""
    _, second = _split_in_shards(directory / part)
    second.write_bytes(second.read_bytes()[:-100])


def remove_shard(directory: Path, part: str) -> None:
    _split_in_shards(directory / part)[1].unlink()


def truncate_weights(directory: Path, part: str) -> None:
    path = _weights_path(directory / part)
    path.write_bytes(path.read_bytes()[:-100])


def misfit_shape(directory: Path, part: str) -> None:
    """The last matrix has a row more than its configuration says."""
    path = _weights_path(directory / part)
    weights = load_file(path)
    name = _name_last_matrix(weights)
    weights[name] = torch.cat([weights[name], weights[name][:1]])
    _save(weights, path)


def remove_tensor(directory: Path, part: str) -> None:
    """The last matrix is missing."""
    path = _weights_path(directory / part)
    weights = load_file(path)
    del weights[_name_last_matrix(weights)]
    _save(weights, path)


def garble_config(directory: Path, part: str) -> None:
    path = next((directory / part).glob("*config.json"))
    path.write_text(path.read_text()[:-20])


DAMAGES = {
    "part missing": Damage(remove_part, weights=False),
    "configuration missing": Damage(remove_config),
    "configuration cut off": Damage(garble_config, weights=False),
    "weights missing": Damage(remove_weights),
    "other class in the index": Damage(name_other_class),
    "other class in the part": Damage(name_other_class_in_part),
    "other pipeline": Damage(name_other_pipeline, said="PixArtSigmaPipeline"),
    "NaN": Damage(put_nan),
    "pickle": Damage(pickle_weights),
    "shard cut off": Damage(truncate_shard),
    "shard missing": Damage(remove_shard),
    "weights cut off": Damage(truncate_weights),
    "shape that does not fit": Damage(misfit_shape),
    "tensor missing": Damage(remove_tensor),
}


class _Poison:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def _name_last_matrix(weights: Mapping[str, Tensor]) -> str:
    """Of tensors with two axes, or with more where none has two."""
    matrices = [name for name, tensor in weights.items() if tensor.ndim == 2]
    return max(matrices or [name for name, tensor in weights.items() if tensor.ndim > 2])


def _weights_path(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def _split_in_shards(folder: Path) -> tuple[Path, Path]:
    path = _weights_path(folder)
    weights = load_file(path)
    names = sorted(weights)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    shards = [path.with_name(f"{path.stem}-0000{k}-of-00002.safetensors") for k in (1, 2)]
    weight_map: dict[str, str] = {}
    for shard, half in zip(shards, halves, strict=True):
        _save({name: weights[name] for name in half}, shard)
        weight_map |= dict.fromkeys(half, shard.name)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()
    return shards[0], shards[1]


def _save(weights: dict[str, Tensor], path: Path) -> None:
    save_file(weights, path, metadata={"format": "pt"})
