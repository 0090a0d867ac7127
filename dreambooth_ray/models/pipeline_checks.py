"""Whether a directory holds the parts that its family names; of any family, by files alone."""

from pathlib import Path
from typing import Any

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import INDEX, ModelFamily, Part
from dreambooth_ray.models.part_configs import read_json
from dreambooth_ray.models.scheduler_checks import check_scheduler
from dreambooth_ray.models.tokenizer_checks import check_tokenizer
from dreambooth_ray.models.weight_files import find_weights


def describe_directory(family: ModelFamily) -> str:
    """What a directory has to be, in words."""
    return f"it must be a directory of {family.title} in diffusers format"


def check_parts(directory: Path, family: ModelFamily) -> None:
    """Look for the folder of each part, and at the class that the index and the part itself name.

    Scheduler and tokenizers are looked at whole, the weights not at all.

    raises: ConfigError naming the file
    """
    requirement = describe_directory(family)
    model_index = read_json(directory / INDEX) if (directory / INDEX).is_file() else {}
    pipeline_class = model_index.get("_class_name")
    if model_index and pipeline_class not in family.pipeline_classes:
        raise ConfigError(
            f"its {INDEX} says {pipeline_class}; {requirement} ({family.pipeline_classes[0]})"
        )
    for folder in family.parts:
        if not (directory / folder).is_dir():
            raise ConfigError(
                f"it has no {folder}/ in it; {requirement}, with {', '.join(family.parts)}"
            )
    check_scheduler(directory, family.process, requirement, family.flow_schedulers)
    for part in family.networks:
        for class_source, class_name in (
            (directory / INDEX, _class_in_index(model_index, part)),
            (directory / part.name, _class_in_config(directory, part)),
        ):
            if class_name not in (part.class_name, *part.wider_classes):
                raise ConfigError(
                    f"{class_source} says that {part.name} is a {class_name}, not a "
                    f"{part.class_name}; {requirement}"
                )
    for encoder in family.text_encoders:
        check_tokenizer(directory, encoder)


def _class_in_index(index: dict[str, Any], part: Part) -> str:
    entry = index.get(part.name)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else part.class_name


def _class_in_config(directory: Path, part: Part) -> str:
    """The part's own class where its configuration names that among others, or none."""
    config = read_json(directory / part.name / "config.json")
    if part.library == "diffusers":
        return str(config.get("_class_name", part.class_name))
    architectures = config.get("architectures") or [part.class_name]
    classes = {part.class_name, *part.wider_classes}
    return next((str(name) for name in architectures if name in classes), str(architectures[0]))


def read_shapes(directory: Path, part: Part) -> dict[str, list[int]]:
    """Shape of each stored tensor of a part by name; raises ConfigError for files not whole."""
    return find_weights(directory / part.name, part.name).read_shapes()
