"""Work that waits, runs or is over: its record, and the names of the marks that say how it stands.

What a mark's name says needs no request beside the listing of it.
"""

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dreambooth_ray.errors import ConfigError

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
MAX_PRIORITY = 99_999
# Of records and of the names of marks. One that is higher is a newer version's.
FORMAT = 1
WorkEnd = Literal["done", "failed", "stopped", "cancelled", "expired"]
# Bytes, where letters beyond ASCII take several.
_LONGEST_OWNER = 200


class WorkRecord(BaseModel):
    """A piece of work. payload: whatever who does it needs

    priority: among its owner's, higher first; deadline_s: Unix time after which it is not begun
    """

    model_config = ConfigDict(frozen=True)

    id: Annotated[str, Field(pattern=ID_PATTERN)]
    owner: str
    payload: str
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    created_ms: Annotated[int, Field(ge=0)]
    deadline_s: float | None = None
    # Tells two that are added under one id apart.
    nonce: str = Field(default_factory=lambda: uuid.uuid4().hex)
    format: int = FORMAT

    @field_validator("owner")
    @classmethod
    def _check_owner_name(cls, owner: str) -> str:
        validate_owner_name(owner)
        return owner

    @classmethod
    def parse(cls, text: bytes, where: str) -> "WorkRecord":
        """From its file. where: of the file, for errors

        raises: ConfigError if a newer version wrote it, or it is no record
        """
        try:
            record_fields = json.loads(text)
            format_version = int(record_fields.get("format", 1))
            if format_version <= FORMAT:
                return cls.model_validate(record_fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where} is no work of a queue, or damaged ({error})") from error
        raise ConfigError(
            f"{where} was written by a newer version (format {format_version}, this one reads "
            f"{FORMAT}); update dreambooth-ray"
        )

    def is_same_work(self, other: "WorkRecord") -> bool:
        """Whether both are the same work, whenever they were added."""
        blanked_fields = {"created_ms": 0, "nonce": ""}
        return self.model_copy(update=blanked_fields) == other.model_copy(update=blanked_fields)


@dataclass(frozen=True)
class WorkMark:
    """What the name of a mark says, without its record."""

    id: str
    owner: str
    priority: int
    created_ms: int

    @property
    def name(self) -> str:
        """Below `waiting` or `running`: sorted, it is the order of turns within an owner."""
        created_second, priority_rank = self.created_ms // 1000, MAX_PRIORITY - self.priority
        mark_folder = f"{quote_owner(self.owner)}/{priority_rank:06d}/{created_second:012d}"
        return f"{mark_folder}/{self.created_ms:015d}-{self.id}"

    @classmethod
    def of(cls, record: WorkRecord) -> "WorkMark":
        """Of a record."""
        return cls(record.id, record.owner, record.priority, record.created_ms)

    @classmethod
    def parse(cls, name: str) -> "WorkMark":
        """From its name; raises ConfigError if it is none of this version's."""
        try:
            owner, priority_rank, _, file_name = name.split("/")
            created_ms, _, work_id = file_name.partition("-")
            return cls(work_id, unquote(owner), MAX_PRIORITY - int(priority_rank), int(created_ms))
        except ValueError as error:
            raise _unknown_mark_error(name) from error


@dataclass(frozen=True)
class EndedWork:
    """Work that is over. note: why, where it was not done"""

    id: str
    state: WorkEnd
    ended_ms: int
    note: str = ""


def ended_mark_name(ended: EndedWork) -> str:
    """Of its mark, below `ended`."""
    return f"{ended.ended_ms // 1000:012d}/{ended.ended_ms:015d}-{ended.state}-{ended.id}"


def parse_ended_mark_name(name: str) -> EndedWork:
    """From the name of its mark, less the note; raises ConfigError as `WorkMark.parse`."""
    try:
        ended_ms, end_state, work_id = name.rpartition("/")[2].split("-", 2)
        return EndedWork(work_id, end_state, int(ended_ms))  # type: ignore[arg-type]
    except ValueError as error:
        raise _unknown_mark_error(name) from error


def _unknown_mark_error(name: str) -> ConfigError:
    return ConfigError(
        f"{name!r} in the queue is no mark of this version: update dreambooth-ray if a newer one "
        "wrote it, or else remove that file"
    )


def validate_owner_name(owner: str) -> None:
    """raises: ValueError for a name that can't be a folder's"""
    if not owner or len(quote_owner(owner)) > _LONGEST_OWNER:
        raise ValueError(
            f"owner={owner!r} is no name of a folder: empty, or too long; take another one"
        )


def quote_owner(owner: str) -> str:
    """As a folder: dots alone would be other folders."""
    return quote(owner, safe="").replace(".", "%2E")


def work_record_path(work_id: str) -> str:
    """Where a record lies: folders of a hundred thousand files are slow on some disks."""
    folder_prefix = hashlib.sha256(work_id.encode()).hexdigest()[:2]
    return f"records/{folder_prefix}/{work_id}.json"
