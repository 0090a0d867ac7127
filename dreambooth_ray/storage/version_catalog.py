"""Which subjects there are: one small entry for each, so that nobody lists what storage holds.

catalog/{prefix}/{subject}.json                   the entry: newest version, and all others by name
catalog_versions/{prefix}/{subject}@{version}.json   a version that a commit has made
catalog_complete.json                             entries are there for runs of earlier releases too

prefix: two hex digits of the SHA-256 of the subject's name. A look-up is one request, and so is a
page of names (see Store.files_after).

Versions are facts, each written once by its commit and removed by its deletion. The entry follows
from them: whoever changes one writes the entry anew until it agrees with what is there after the
writing. So of two who change one subject at once, a commit beside a rebuild for example, the last
to write sees both. One who dies in between leaves an entry that the next change or
`dreambooth catalog rebuild` puts right.
"""

import contextlib
import hashlib
import json
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dreambooth_ray.errors import CheckpointError, StorageError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.retry import PATIENCE_S
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import (
    VERSION_PATTERN,
    Id,
    SubjectVersion,
    is_subject_or_run_id,
    parse_bundle_manifest,
)

FORMAT = 1
_MOST_BYTES = 2**20
_MOST_VERSIONS = 1000
_VERSIONS_A_PAGE = 100
_MOST_WRITES = 20
_PREFIX_DIGITS = 2
_Model = TypeVar("_Model", bound=BaseModel)


class SubjectVersionRef(BaseModel):
    """A version by name, and the run that made it."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[str, StringConstraints(pattern=VERSION_PATTERN)]
    run_id: Id
    created_s: float = Field(allow_inf_nan=False)


class SubjectEntry(BaseModel):
    """A subject. versions: the newest 1,000, newest first; `newest` is the first of them."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    newest: SubjectVersion
    versions: tuple[SubjectVersionRef, ...] = Field(min_length=1)


class _SubjectVersionFile(BaseModel):
    format: int = FORMAT
    version: SubjectVersion


class SubjectVersionCatalog:
    """The subjects in one storage. Blocking: call it from a thread."""

    def __init__(self, store: Store, patience_s: float = PATIENCE_S) -> None:
        """patience_s: how long remote storage that is away is waited for by reads"""
        self.store, self._patience_s = store, patience_s

    def read(self, subject: str) -> SubjectEntry:
        """The entry of a subject, in one request.

        raises: FileNotFoundError if there is none; CheckpointError if it is cut off, of a newer
            version or of another subject; StorageError
        """
        name = entry_file_name(subject)
        file_bytes = self.store.read(name, self._patience_s)
        entry = _parse_json_model(SubjectEntry, file_bytes, f"{self.store.uri}/{name}")
        if entry.newest.subject != subject or entry.versions[0].version != entry.newest.version:
            raise CheckpointError(
                f"{self.store.uri}/{name} is an entry of {entry.newest.subject!r}; run `dreambooth "
                "catalog rebuild`"
            )
        return entry

    def list_subjects(self, after: str = "", limit: int = 1000) -> list[str]:
        """Up to `limit` subjects that come after a position, in a fixed order.

        after: `position` of a subject, or "" for the first; one request for each 1,000
        """
        subjects: list[str] = []
        while len(subjects) < limit:
            num_missing = limit - len(subjects)
            file_names = self.store.files_after(paths.CATALOG, after, num_missing, self._patience_s)
            subjects += [s for s in map(_parse_entry_name, file_names) if s is not None]
            if len(file_names) < num_missing:
                break
            after = file_names[-1]
        return subjects

    def read_run_version(self, run_id: str) -> SubjectVersion | None:
        """What a run has committed, by its bundle's manifest; None if it has committed nothing."""
        manifest_file = f"{paths.run(run_id)}/{paths.BUNDLE}/{MANIFEST}"
        try:
            manifest = self.store.read(manifest_file, self._patience_s)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return parse_bundle_manifest(run_id, manifest) if len(manifest) <= _MOST_BYTES else None

    def add(self, version: SubjectVersion) -> None:
        """Make a committed version known; an older one of the same run goes."""
        self.write_version(version)
        entry = self._read_entry_or_none(version.subject)
        for ref in entry.versions if entry else ():
            if ref.run_id == version.run_id and ref.version != version.version:
                self.store.remove_file(version_file_name(version.subject, ref.version))
        self.update_entry(version.subject, {version.version: version})

    def write_version(self, version: SubjectVersion) -> None:
        """Write down a committed version; the entry has it once it is settled."""
        version_json = _SubjectVersionFile(version=version).model_dump_json()
        self.store.write(version_file_name(version.subject, version.version), version_json.encode())

    def remove(self, subject: str, version: str) -> None:
        """Take a version away; with the last one the subject goes."""
        self.store.remove_file(version_file_name(subject, version))
        self.update_entry(subject)

    def update_entry(self, subject: str, records: dict[str, SubjectVersion] | None = None) -> None:
        """Make the entry of a subject agree with the versions there are.

        records: versions whose files need not be read again, by name
        raises: StorageError
        """
        for _ in range(_MOST_WRITES):
            entry = self._read_entry_or_none(subject)
            new_entry = self._build_entry(subject, entry, records or {})
            if entry == new_entry:
                return
            if new_entry is None:
                self.store.remove_file(entry_file_name(subject))
            else:
                self.store.write(entry_file_name(subject), new_entry.model_dump_json().encode())
        raise StorageError(
            f"{self.store.uri}/{entry_file_name(subject)} changes all the time; look for another "
            "process that writes it, then run `dreambooth catalog rebuild`"
        )

    def _build_entry(
        self, subject: str, entry: SubjectEntry | None, records: dict[str, SubjectVersion]
    ) -> SubjectEntry | None:
        known_refs = {ref.version: ref for ref in entry.versions} if entry else {}
        records = ({entry.newest.version: entry.newest} if entry else {}) | records
        version_refs: list[SubjectVersionRef] = []
        for name in self.list_versions(subject):
            version_record = records.get(name)
            if version_record is None and name not in known_refs:
                version_record = self.read_version(subject, name)
            if version_record is not None:
                records[name] = version_record
                version_refs.append(_make_ref(version_record))
            elif name in known_refs:
                version_refs.append(known_refs[name])
        sorted_refs = sorted(version_refs, key=lambda r: (r.created_s, r.run_id), reverse=True)
        for index, ref in enumerate(sorted_refs):
            newest_version = records.get(ref.version) or self.read_version(subject, ref.version)
            if newest_version is not None:
                listed_refs = tuple(sorted_refs[index : index + _MOST_VERSIONS])
                return SubjectEntry(newest=newest_version, versions=listed_refs)
        return None

    def list_versions(self, subject: str) -> list[str]:
        """Names of the versions of a subject that commits have made."""
        folder, _, prefix = version_file_name(subject, "").removesuffix(".json").rpartition("/")
        file_names: list[str] = []
        while True:
            after = file_names[-1] if file_names else prefix
            page = self.store.files_after(folder, after, _VERSIONS_A_PAGE, self._patience_s)
            file_names += [name for name in page if name.startswith(prefix)]
            if len(page) < _VERSIONS_A_PAGE or not page[-1].startswith(prefix):
                return [name.removeprefix(prefix).removesuffix(".json") for name in file_names]

    def read_version(self, subject: str, version: str) -> SubjectVersion | None:
        """A version as its commit described it; None if it is gone or its file is cut off."""
        name = version_file_name(subject, version)
        try:
            file_bytes = self.store.read(name, self._patience_s)
            where = f"{self.store.uri}/{name}"
            record = _parse_json_model(_SubjectVersionFile, file_bytes, where).version
        except (FileNotFoundError, CheckpointError):
            return None
        return record if (record.subject, record.version) == (subject, version) else None

    def _read_entry_or_none(self, subject: str) -> SubjectEntry | None:
        try:
            return self.read(subject)
        except FileNotFoundError:
            return None
        except _NewerFormatError as error:
            raise StorageError(str(error)) from error
        except CheckpointError:
            return None


class _NewerFormatError(CheckpointError):
    """An entry that a newer release has written: not ours to replace."""


def _parse_json_model(kind: type[_Model], data: bytes, where: str) -> _Model:
    """raises: CheckpointError"""
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has {len(data)} bytes and {_MOST_BYTES} is the most")
        json_value = json.loads(data)
        if isinstance(json_value, dict) and int(json_value.get("format", FORMAT)) > FORMAT:
            raise _NewerFormatError(
                f"{where} was written by a newer version (format {json_value['format']}, this one "
                f"reads {FORMAT}); update dreambooth-ray"
            )
        return kind.model_validate(json_value)
    except (ValueError, TypeError, RecursionError) as error:
        error_text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{where} is cut off or malformed ({error_text}); run `dreambooth catalog rebuild`"
        ) from error


def _make_ref(record: SubjectVersion) -> SubjectVersionRef:
    return SubjectVersionRef(
        version=record.version, run_id=record.run_id, created_s=record.created_s
    )


def subject_listing_position(subject: str) -> str:
    """Where a subject stands in the order of `list_subjects`."""
    return f"{_subject_hash_prefix(subject)}/{subject}.json"


def entry_file_name(subject: str) -> str:
    """File of a subject's entry."""
    return f"{paths.CATALOG}/{subject_listing_position(subject)}"


def version_file_name(subject: str, version: str) -> str:
    """File that says that a subject has a version."""
    return f"{paths.CATALOG_VERSIONS}/{_subject_hash_prefix(subject)}/{subject}@{version}.json"


def _subject_hash_prefix(subject: str) -> str:
    return hashlib.sha256(subject.encode()).hexdigest()[:_PREFIX_DIGITS]


def _parse_entry_name(name: str) -> str | None:
    """The subject of an entry's file below the catalog; None for what is no entry."""
    subject = name.rpartition("/")[2].removesuffix(".json")
    is_entry = is_subject_or_run_id(subject) and name == subject_listing_position(subject)
    return subject if is_entry else None


def publish_run(run: Store) -> None:
    """Make what a run has committed known to endpoints; nothing if it is, two requests.

    raises: StorageError
    """
    subject_catalog, version = _find_catalog_and_version(run)
    if subject_catalog is None or version is None:
        return
    with contextlib.suppress(FileNotFoundError, CheckpointError):
        version_refs = subject_catalog.read(version.subject).versions
        if any((r.version, r.run_id) == (version.version, version.run_id) for r in version_refs):
            return
    subject_catalog.add(version)


def withdraw_run(run: Store) -> None:
    """Take what a run has committed out of the catalog; its files stay."""
    subject_catalog, version = _find_catalog_and_version(run)
    if subject_catalog is not None and version is not None:
        subject_catalog.remove(version.subject, version.version)


def _find_catalog_and_version(
    run: Store,
) -> tuple[SubjectVersionCatalog | None, SubjectVersion | None]:
    """The catalog a run belongs in, none for a folder elsewhere, and what it has committed."""
    storage_uri, _, run_id = run.uri.rpartition("/runs/")
    if not storage_uri or not is_subject_or_run_id(run_id):
        return None, None
    subject_catalog = SubjectVersionCatalog(Store(storage_uri))
    return subject_catalog, subject_catalog.read_run_version(run_id)
