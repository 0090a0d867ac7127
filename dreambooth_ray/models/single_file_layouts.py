"""Which published model a single file's weights are of, and the small files that it needs.

Nothing heavy is imported.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.clip_tokenizer_files import make_clip_tokenizer_files
from dreambooth_ray.models.part_configs import DEFAULTS
from dreambooth_ray.models.stored_tensors import Parts, StoredTensor
from dreambooth_ray.models.weight_shapes import find_mismatch

_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def drop_layers(text_encoder: dict[str, StoredTensor], num_layers: int) -> None:
    """2.x uses all layers of open_clip but the last, which its files have."""
    for tensor_name in [n for n in text_encoder if n.startswith("text_model.encoder.layers.")]:
        if int(tensor_name.split(".")[3]) >= num_layers:
            del text_encoder[tensor_name]


def read_exported_small_files(text: str) -> dict[str, str]:
    """The small files of a model that this package has exported, as its file's header has them."""
    small_files: dict[str, str] = json.loads(text)
    for tokenizer_folder in ("tokenizer", "tokenizer_2"):
        vocabulary_files = {f"{tokenizer_folder}/tokenizer.json", f"{tokenizer_folder}/merges.txt"}
        if (
            f"{tokenizer_folder}/tokenizer_config.json" in small_files
            and not vocabulary_files & small_files.keys()
        ):
            small_files |= make_clip_tokenizer_files(tokenizer_folder)
    return small_files


def find_published_small_files(
    path: Path, parts: Parts, prediction_type: str | None, metadata: Mapping[str, str]
) -> dict[str, str]:
    """The small files of the published model whose weights have these shapes.

    prediction_type: what it predicts, where the caller knows; metadata: of the file's header
    raises: ConfigError where none has, or nobody says what a 2.x predicts
    """
    layouts = json.loads((files(__package__) / "layouts" / "layouts.json").read_text("utf-8"))
    problems = []
    for layout in layouts.values():
        network_parts = [part for part in _NETWORKS if f"{part}/config.json" in layout]
        if set(network_parts) != parts.keys():
            continue
        problem = next(
            filter(None, (_find_difference(layout, part, parts) for part in network_parts)), ""
        )
        if not problem:
            small_files = {
                file_name: json.dumps(content, indent=2) for file_name, content in layout.items()
            }
            small_files |= make_clip_tokenizer_files("tokenizer")
            small_files |= (
                make_clip_tokenizer_files("tokenizer_2") if "text_encoder_2" in parts else {}
            )
            return _set_prediction(path, small_files, prediction_type, metadata)
        problems.append(problem)
    raise ConfigError(
        f"{path} is of no size that is known ({', '.join(layouts)}): {problems[0]}; convert it to "
        "a directory by the program that it was made with"
    )


def _find_difference(layout: Mapping[str, Any], part: str, parts: Parts) -> str:
    part_kind = part.removesuffix("_2")
    part_config = DEFAULTS[part_kind] | layout[f"{part}/config.json"]
    part_tensors = dict(parts[part])
    if part == "text_encoder":
        drop_layers(part_tensors, part_config["num_hidden_layers"])
    stored_shapes = {
        tensor_name: list(tensor.shape) for tensor_name, tensor in part_tensors.items()
    }
    return find_mismatch(part_kind, part_config, stored_shapes)


def _set_prediction(
    path: Path,
    small_files: Mapping[str, str],
    prediction_type: str | None,
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """What the model predicts: by the caller, the header, the .yaml beside it, or as published."""
    scheduler_file = "scheduler/scheduler_config.json"
    chosen_prediction = prediction_type or _find_prediction(path, metadata)
    encoder_config = json.loads(small_files["text_encoder/config.json"])
    is_v2 = encoder_config.get("hidden_act") == "gelu"
    if chosen_prediction is None and is_v2:
        raise ConfigError(
            f"{path} is a Stable Diffusion 2.x and does not say what it predicts; set "
            "model.prediction_type to v_prediction (of 768 pixels) or epsilon (of 512, the base)"
        )
    scheduler_config = json.loads(small_files[scheduler_file]) | (
        {"prediction_type": chosen_prediction} if chosen_prediction else {}
    )
    return {**small_files, scheduler_file: json.dumps(scheduler_config, indent=2)}


def _find_prediction(path: Path, metadata: Mapping[str, str]) -> str | None:
    prediction_types = {"v": "v_prediction", "epsilon": "epsilon", "v_prediction": "v_prediction"}
    if prediction_type := prediction_types.get(metadata.get("modelspec.prediction_type", "")):
        return prediction_type
    sidecar = path.with_suffix(".yaml")  # A1111's
    if not sidecar.is_file():
        return None
    is_v_prediction = 'parameterization: "v"' in sidecar.read_text("utf-8", errors="replace")
    return "v_prediction" if is_v_prediction else "epsilon"
