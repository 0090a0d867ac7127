"""A fleet's file: many subjects and how they are trained."""

from collections import Counter
from datetime import datetime
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from dreambooth_ray.config.load import combine_overrides, load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.section import PathText, Section, Text
from dreambooth_ray.config.validation_errors import explain_error
from dreambooth_ray.config.yaml_text import parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.work_records import ID_PATTERN, MAX_PRIORITY, validate_owner_name


class FleetSubject(Section):
    """One subject of a fleet."""

    id: str = Field(pattern=ID_PATTERN, description="its run id")
    photos: PathText
    class_noun: Text
    identifier: Text = "sks"
    owner: Text = Field("nobody", description="owners take turns")
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="an owner's subjects: higher first"
    )
    deadline: Text | None = Field(
        None, description="of the queue: not begun after it; 2030-01-31T12:00Z"
    )
    overrides: tuple[str, ...] = Field((), description="key.path=value for this one alone")

    @field_validator("owner")
    @classmethod
    def _owner_is_a_folder(cls, owner: str) -> str:
        validate_owner_name(owner)
        return owner

    @field_validator("deadline")
    @classmethod
    def _deadline_is_a_moment(cls, deadline: str | None) -> str | None:
        try:
            if deadline is None or datetime.fromisoformat(deadline).tzinfo is not None:
                return deadline
        except ValueError as error:
            raise ValueError(f"{deadline!r} is no moment; write 2030-01-31T12:00Z") from error
        raise ValueError(f"{deadline} has no time zone; write {deadline}Z for UTC")

    @property
    def deadline_s(self) -> float | None:
        """deadline as Unix time."""
        return datetime.fromisoformat(self.deadline).timestamp() if self.deadline else None


class FleetConfig(Section):
    """A fleet."""

    recipe: PathText
    overrides: tuple[str, ...] = Field((), description="key.path=value for all")
    parallel: int = Field(
        1, ge=1, description="subjects trained at once; with slots, workers that divide them"
    )
    slots: int = Field(
        0, ge=0, description="subjects in batches that they share; 0 trains each by itself"
    )
    retries: int = Field(2, ge=0, description="tries more for a subject that fails")
    subjects: tuple[FleetSubject, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_worker_has_a_slot(self) -> "FleetConfig":
        if 0 < self.slots < self.parallel:
            raise ValueError(
                f"slots={self.slots} can't be divided by parallel={self.parallel} workers; give "
                "more slots, or fewer workers"
            )
        return self

    def config_of(self, subject: FleetSubject) -> Config:
        """A subject's run; raises ConfigError naming the key at fault."""
        subject_overrides = [
            f"run_id={subject.id}",
            f"subject.photos={subject.photos}",
            f"subject.class_noun={subject.class_noun}",
            f"subject.identifier={subject.identifier}",
        ]
        overrides = [*self.overrides, *subject_overrides]
        return load_config(self.recipe, combine_overrides(overrides, list(subject.overrides)))


def load_fleet(path: Path) -> FleetConfig:
    """Read a fleet's file.

    raises: ConfigError naming file and key
    """
    try:
        config_tree = parse_yaml(read_text_file(path), str(path), FleetConfig)
        if not isinstance(config_tree, dict):
            raise ConfigError(f"{path} holds no mapping of keys; give recipe and subjects")
        fleet = FleetConfig.model_validate(config_tree)
    except OSError as error:
        reason = (
            "is not there" if isinstance(error, FileNotFoundError) else f"can't be read: {error}"
        )
        raise ConfigError(f"{path} {reason}; give a YAML file with recipe and subjects") from error
    except ValidationError as error:
        reason = explain_error(error.errors()[0], remedy="give it there")
        raise ConfigError(f"{path}: {reason}") from error
    repeated_ids = [
        name for name, count in Counter(s.id for s in fleet.subjects).items() if count > 1
    ]
    if repeated_ids:
        raise ConfigError(f"{path}: subjects: id {repeated_ids[0]!r} is there twice; ids name runs")
    return fleet


def load_configurations(fleet: FleetConfig) -> dict[str, Config]:
    """Every subject's configuration, by id; refuses the whole fleet for one mistake.

    As they were read: what nobody has set is the model's choice, and a text would not tell.

    raises: ConfigError naming the subject and the key
    """
    configs, subject_id_by_cluster_address = {}, {}
    for subject in fleet.subjects:
        try:
            config = fleet.config_of(subject)
        except ConfigError as error:
            raise ConfigError(f"subject {subject.id!r}: {error}") from error
        if config.run_id != subject.id:
            raise ConfigError(
                f"subject {subject.id!r}: overrides: run_id={config.run_id!r} is another run's "
                "name; leave it out: the id names the run"
            )
        configs[subject.id] = config
        subject_id_by_cluster_address[config.cluster.address] = subject.id
    if len(subject_id_by_cluster_address) > 1:
        (first_address, first_id), (second_address, second_id) = list(
            subject_id_by_cluster_address.items()
        )[:2]
        raise ConfigError(
            f"subject {second_id!r}: cluster.address={second_address} is another than "
            f"{first_address} of {first_id!r}; a fleet is trained on one cluster: set it in the "
            "fleet's overrides"
        )
    return configs


def refuse_deadlines(fleet: FleetConfig) -> None:
    """raises: ConfigError for a subject with a deadline, of a fleet that is trained at once"""
    for subject in fleet.subjects:
        if subject.deadline is not None:
            raise ConfigError(
                f"subject {subject.id!r}: deadline={subject.deadline} counts where subjects wait "
                "for their turn in a queue; put them there by `fleet add`, or leave it out"
            )
