"""Whether a directory holds the parts that its family names; of any family, by files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.config_value_checks import find_bad_value
from dreambooth_ray.models.family import INDEX, ModelFamily, Part
from dreambooth_ray.models.part_configs import DEFAULTS, read_json
from dreambooth_ray.models.scheduler_checks import check_scheduler
from dreambooth_ray.models.tokenizer_checks import check_tokenizer
from dreambooth_ray.models.weight_files import find_weights

COPY_AGAIN = "copy it again, or take a model that diffusers has written"
# Above what any model has.
_MAX_LAYERS = 1_000
# Classes that several families have, by the part whose values are known.
_CHECKED_CLASSES = {
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
}


def describe_required_directory(family: ModelFamily) -> str:
    """What a directory has to be, in words."""
    return f"it must be a directory of {family.title} in diffusers format"


def check_parts(directory: Path, family: ModelFamily) -> None:
    """Look for the folder of each part, and at the class that the index and the part itself name.

    Scheduler and tokenizers are looked at whole, the weights not at all.

    raises: ConfigError naming the file
    """
    directory_requirement = describe_required_directory(family)
    model_index = read_json(directory / INDEX) if (directory / INDEX).is_file() else {}
    pipeline_class = model_index.get("_class_name")
    if model_index and pipeline_class not in family.pipeline_classes:
        raise ConfigError(
            f"its {INDEX} says {pipeline_class}; {directory_requirement} "
            f"({family.pipeline_classes[0]})"
        )
    for part_folder in family.parts:
        if not (directory / part_folder).is_dir():
            raise ConfigError(
                f"it has no {part_folder}/ in it; {directory_requirement}, with "
                f"{', '.join(family.parts)}"
            )
    check_scheduler(directory, family.process, directory_requirement, family.flow_schedulers)
    for part in family.networks:
        path = directory / part.name / "config.json"
        config = read_json(path)
        for class_source, class_name in (
            (directory / INDEX, _class_in_index(model_index, part)),
            (directory / part.name, _class_in_config(config, part)),
        ):
            if class_name not in (part.class_name, *part.wider_classes):
                raise ConfigError(
                    f"{class_source} says that {part.name} is a {class_name}, not a "
                    f"{part.class_name}; {directory_requirement}"
                )
        _check_config_values(path, config, part)
    for encoder in family.text_encoders:
        check_tokenizer(directory, encoder)


def _check_config_values(path: Path, config: dict[str, Any], part: Part) -> None:
    _check_layer_count_limit(path, config)
    kind = _CHECKED_CLASSES.get(part.class_name)
    if kind and (problem := find_bad_value(kind, DEFAULTS[kind] | config)):
        raise ConfigError(f"{path}: {problem}; {COPY_AGAIN}")


def _check_layer_count_limit(path: Path, config: dict[str, Any]) -> None:
    """Tensors of all layers are listed before they are looked for."""
    sections = [config]
    for section in sections:
        for key, value in section.items():
            if isinstance(value, dict):
                sections.append(value)
            counts = value if isinstance(value, list) else [value]
            if any(word in key for word in ("layer", "depth", "blocks")) and any(
                type(count) is int and count > _MAX_LAYERS for count in counts
            ):
                raise ConfigError(
                    f"{path}: {key}={value!r} is more than {_MAX_LAYERS}; copy the model "
                    "directory again"
                )


def _class_in_index(index: dict[str, Any], part: Part) -> str:
    index_entry = index.get(part.name)
    return (
        str(index_entry[1])
        if isinstance(index_entry, list) and len(index_entry) == 2
        else part.class_name
    )


def _class_in_config(config: dict[str, Any], part: Part) -> str:
    """The part's own class where its configuration names that among others, or none."""
    if part.library == "diffusers":
        return str(config.get("_class_name", part.class_name))
    architectures = config.get("architectures") or [part.class_name]
    if not isinstance(architectures, list):
        return str(architectures)
    accepted_classes = {part.class_name, *part.wider_classes}
    return next(
        (str(architecture) for architecture in architectures if architecture in accepted_classes),
        str(architectures[0]),
    )


def read_shapes(directory: Path, part: Part) -> dict[str, list[int]]:
    """Shape of each stored tensor of a part by name; raises ConfigError for files not whole."""
    return find_weights(directory / part.name, part.name).read_shapes()
