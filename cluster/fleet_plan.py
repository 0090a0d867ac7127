"""Many subjects on one cluster: who is next, what is tried again, what is already done.

The planning is pure. The carrying out is one Ray task a subject, each the same pipeline that
`dreambooth train` runs, so that a fleet killed anywhere is taken up by starting it again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError, model_validator

from dreambooth_ray.config.load import dump_config, layer_overrides, load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.section import PathText, Section, Text
from dreambooth_ray.config.yaml_text import parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.owner_turns import OwnerTurns

FleetState = Literal["waiting", "running", "done", "stopped", "failed"]


class FleetSubject(Section):
    """One subject of a fleet."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="its run id")
    photos: PathText
    class_noun: Text
    identifier: Text = "sks"
    owner: Text = Field("nobody", description="owners take turns")
    priority: int = Field(0, description="an owner's subjects: higher first")
    overrides: tuple[str, ...] = Field((), description="key.path=value for this one alone")


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
        return load_config(self.recipe, layer_overrides(overrides, list(subject.overrides)))


def load_fleet(path: Path) -> FleetConfig:
    """Read a fleet's file.

    raises: ConfigError naming file and key
    """
    try:
        fleet = FleetConfig.model_validate(parse_yaml(read_text_file(path), str(path), FleetConfig))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is not there; give a YAML file with recipe and subjects"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {key}: {first['msg']}") from error
    repeated_ids = [
        name for name, count in Counter(s.id for s in fleet.subjects).items() if count > 1
    ]
    if repeated_ids:
        raise ConfigError(f"{path}: subjects: id {repeated_ids[0]!r} is there twice; ids name runs")
    return fleet


@dataclass
class FleetEntry:
    """A subject and how it stands. seconds: its tries added up."""

    subject: FleetSubject
    state: FleetState = "waiting"
    tries: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def owner(self) -> str:
        """Of the subject."""
        return self.subject.owner

    @property
    def priority(self) -> int:
        """Of the subject."""
        return self.subject.priority


@dataclass
class FleetQueue:
    """Who waits, runs and is done. Pure: it starts nothing."""

    entries: list[FleetEntry]
    parallel: int
    retries: int
    turns: OwnerTurns = field(default_factory=OwnerTurns)

    def next(self) -> FleetEntry | None:
        """The entry to start now; None if all places are taken or nobody waits."""
        if sum(e.state == "running" for e in self.entries) >= self.parallel:
            return None
        entry = self.turns.take([e for e in self.entries if e.state == "waiting"])
        if entry is not None:
            entry.state = "running"
            entry.tries += 1
        return entry

    def finish(
        self, entry: FleetEntry, error: str | None, seconds: float, *, may_retry: bool = True
    ) -> None:
        """Note how a try ended; a failed one waits again while it has tries left.

        may_retry: whether another try may end otherwise
        """
        entry.seconds += seconds
        entry.note = error or ""
        if error is None:
            entry.state = "done"
        else:
            entry.state = "waiting" if may_retry and entry.tries <= self.retries else "failed"

    def stop(self, entry: FleetEntry, note: str, seconds: float) -> None:
        """Note that a person has stopped a subject's run."""
        entry.seconds += seconds
        entry.state, entry.note = "stopped", note

    def put_back(self, entry: FleetEntry, seconds: float) -> None:
        """Let an entry wait again whose try was cut off through no fault of its own."""
        entry.seconds += seconds
        entry.tries -= 1
        entry.state = "waiting"

    def withdraw(self, entry: FleetEntry, seconds: float) -> None:
        """Let an entry wait for another queue."""
        self.put_back(entry, seconds)
        self.entries.remove(entry)

    @property
    def is_over(self) -> bool:
        """Whether nothing waits or runs."""
        return all(e.state in ("done", "stopped", "failed") for e in self.entries)


class SubjectQueue(Protocol):
    """Who waits, runs and is done, in this process's memory or in storage."""

    @property
    def is_over(self) -> bool:
        """Whether nothing waits or runs."""

    def next(self) -> FleetEntry | None:
        """The entry to start now; None if there is none."""

    def finish(
        self, entry: FleetEntry, error: str | None, seconds: float, *, may_retry: bool = True
    ) -> None:
        """Note how a try ended."""

    def stop(self, entry: FleetEntry, note: str, seconds: float) -> None:
        """Note that a person has stopped a subject's run."""

    def put_back(self, entry: FleetEntry, seconds: float) -> None:
        """Let an entry wait again whose try was cut off through no fault of its own."""

    def withdraw(self, entry: FleetEntry, seconds: float) -> None:
        """Take an entry out that can't be trained here."""


def run_queue(
    queue: SubjectQueue,
    start: Callable[[FleetEntry], Any],
    wait: Callable[[Iterable[Any]], Any],
    outcome: Callable[[Any], str | None],
    say: Callable[[str], None],
) -> None:
    """Start the entries of the queue and record how they end, until it is over.

    start: begins an entry's run and returns its handle; wait: blocks until one of the handles has
    ended and returns it; outcome: None, or why it failed
    """
    running: dict[Any, tuple[FleetEntry, float]] = {}
    while not queue.is_over:
        while (entry := queue.next()) is not None:
            running[start(entry)] = entry, time.monotonic()
            say(f"{entry.subject.id}: try {entry.tries} begins")
        if not running:
            continue  # nothing waited after all
        handle = wait(list(running))
        entry, start_s = running.pop(handle)
        queue.finish(entry, outcome(handle), time.monotonic() - start_s)
        say(f"{entry.subject.id}: {entry.state} {entry.note}".rstrip())


def dump_configurations(fleet: FleetConfig) -> dict[str, str]:
    """Every subject's configuration as YAML, by id; refuses the whole fleet for one mistake.

    raises: ConfigError naming the subject and the key
    """
    config_texts = {}
    for subject in fleet.subjects:
        try:
            config_texts[subject.id] = dump_config(fleet.config_of(subject))
        except ConfigError as error:
            raise ConfigError(f"subject {subject.id!r}: {error}") from error
    return config_texts
