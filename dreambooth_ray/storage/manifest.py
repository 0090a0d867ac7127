"""The commit protocol: files first, then a manifest of them, then a pointer.

An artifact `NAME` is a folder of its own, `NAME-<nonce>/`, with a manifest that lists
every file's size and SHA-256 (and the store's own checksum, where it computes one), and a
pointer `NAME.json` that names the folder and the manifest's hash. The pointer is created by
conditional write, so of two writers one wins and the files of the two never mix. Readers
start at pointers and see nothing else.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.damaged_file import raise_damage
from dreambooth_ray.storage.store import Store

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact.

    checksum: the store's own over the whole file, "CRC32:<base64>", where it computes one
    """

    name: str
    size_bytes: int
    sha256: str
    checksum: str | None = None


def local_entries(folder: Path) -> list[FileEntry]:
    """Every file below a local folder, sorted by name."""
    return [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, file_hash(path))
        for path in _list_files(folder)
    ]


def _list_files(folder: Path) -> list[Path]:
    """Every file below a local folder but its manifest, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def file_hash(path: Path) -> str:
    """SHA-256 of a local file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def bytes_hash(data: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def upload_files(store: Store, folder: str, local: Path) -> list[FileEntry]:
    """Upload the files of `local` to `folder`; returns what a manifest has to say of them."""
    entries = []
    for path in _list_files(local):
        name = path.relative_to(local).as_posix()
        sent_file = store.upload(path, f"{folder}/{name}")
        entries.append(FileEntry(name, sent_file.size_bytes, sent_file.sha256, sent_file.checksum))
    return entries


def upload_folder_with_manifest(
    store: Store, folder: str, local: Path, about: dict[str, object]
) -> bytes:
    """Upload the files of `local` to `folder`, then its manifest; returns the manifest."""
    store.remove_file(f"{folder}/{MANIFEST}")
    manifest = _make_manifest(upload_files(store, folder, local), about)
    store.write(f"{folder}/{MANIFEST}", manifest)
    return manifest


def write_local_manifest(folder: Path, about: dict[str, object]) -> None:
    """Write the manifest of a local folder's files into it."""
    (folder / MANIFEST).write_bytes(_make_manifest(local_entries(folder), about))


def _make_manifest(entries: list[FileEntry], about: dict[str, object]) -> bytes:
    file_fields = [{k: v for k, v in asdict(entry).items() if v is not None} for entry in entries]
    return json.dumps({"format": FORMAT, "about": about, "files": file_fields}, indent=1).encode()


def commit_artifact(store: Store, name: str, local: Path, about: dict[str, object]) -> None:
    """Commit files of `local` as artifact `name`; intact ones stay, damaged ones are replaced."""
    folder = f"{name}-{uuid.uuid4().hex[:12]}"
    manifest = upload_folder_with_manifest(store, folder, local, about)
    _write_artifact_pointer(store, name, folder, manifest)


def commit_uploaded(
    store: Store, name: str, folder: str, entries: list[FileEntry], about: dict[str, object]
) -> None:
    """As `commit_artifact`, for files that one or several hosts have uploaded to `folder`."""
    manifest = _make_manifest(sorted(entries, key=lambda e: e.name), about)
    store.write(f"{folder}/{MANIFEST}", manifest)
    _write_artifact_pointer(store, name, folder, manifest)


def _write_artifact_pointer(store: Store, name: str, folder: str, manifest: bytes) -> None:
    """Point to `folder`, unless another intact artifact is there; remove what nothing names.

    Nothing is removed on a refusal alone, only once the pointer was read and names another folder:
    the answer that said no may have been lost on its way and asked for again.
    """
    digest = bytes_hash(manifest)
    pointer_json = json.dumps({"folder": folder, "manifest_sha256": digest}).encode()
    # Which other folder is there is known only if the name is taken: most commits find it free.
    if store.create(f"{name}.json", pointer_json):
        return
    previous_artifact_folder = find_artifact_folder(store, name)
    if find_damage(store, name):
        store.write(f"{name}.json", pointer_json)
    current_artifact_folder = find_artifact_folder(store, name)
    for unreferenced_folder in {previous_artifact_folder, folder} - {current_artifact_folder, None}:
        if current_artifact_folder is not None:
            store.remove(str(unreferenced_folder))


def download_artifact(store: Store, name: str, local: Path) -> dict[str, object]:
    """Download artifact `name` into `local`, verifying every file; returns its `about`.

    raises: CheckpointError naming the first file that is missing or differs
    """
    folder, manifest = _read_manifest(store, name)
    return download_folder(store, folder, local, manifest)


def download_folder(store: Store, folder: str, local: Path, manifest: bytes) -> dict[str, object]:
    """Download what `manifest` lists from `folder` into `local`, verified."""
    metadata, file_entries = parse_manifest(manifest, f"{store.uri}/{folder}/{MANIFEST}")
    download_files(store, folder, file_entries, local)
    return metadata


def download_files(store: Store, folder: str, files: Iterable[FileEntry], local: Path) -> None:
    """Download some files of `folder` into `local`, hashed on their way.

    raises: CheckpointError naming the first that is missing or differs
    """
    for file_entry in files:
        name = f"{folder}/{file_entry.name}" if folder else file_entry.name
        with raise_damage(store, name):
            digest = store.download(name, local / file_entry.name, file_entry.size_bytes)
        if digest != file_entry.sha256:
            raise CheckpointError(f"{store.uri}/{name} differs from its manifest: it is damaged")


def parse_manifest(manifest: bytes, where: str) -> tuple[dict[str, object], list[FileEntry]]:
    """Its `about` and files; raises CheckpointError if cut off, malformed, or of a newer version"""
    try:
        manifest_fields = json.loads(manifest)
        format_version = int(manifest_fields.get("format", FORMAT))
        if format_version > FORMAT:
            raise CheckpointError(
                f"{where} was written by a newer version (format {format_version}, this one reads "
                f"{FORMAT}); update dreambooth-ray"
            )
        metadata = dict(manifest_fields["about"])
        return metadata, [
            FileEntry(f["name"], int(f["size_bytes"]), f["sha256"], f.get("checksum"))
            for f in manifest_fields["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} is cut off or malformed: {error!r}") from error


def read_artifact_metadata(store: Store, name: str) -> dict[str, object]:
    """What artifact `name` says of itself; raises CheckpointError if it is not committed."""
    return read_entries(store, name)[1]


def read_entries(store: Store, name: str) -> tuple[str, dict[str, object], list[FileEntry]]:
    """Folder, metadata and files of an artifact; raises as `read_artifact_metadata`."""
    folder, manifest = _read_manifest(store, name)
    return folder, *parse_manifest(manifest, f"{store.uri}/{folder}/{MANIFEST}")


def read_artifact_file(store: Store, name: str, file: str) -> bytes:
    """One file of artifact `name`, verified.

    raises: CheckpointError if it is not committed, has no such file, or differs
    """
    folder, _, file_entries = read_entries(store, name)
    expected_hashes = [f.sha256 for f in file_entries if f.name == file]
    path = f"{folder}/{file}"
    with raise_damage(store, path):
        file_bytes = store.read(path)
    if expected_hashes != [hashlib.sha256(file_bytes).hexdigest()]:
        raise CheckpointError(f"{store.uri}/{path} differs from its manifest: it is damaged")
    return file_bytes


def find_artifact_folder(store: Store, name: str) -> str | None:
    """Folder that the pointer of artifact `name` names; None if it can't be read."""
    try:
        return _read_manifest(store, name)[0]
    except CheckpointError:
        return None


def artifact_size_bytes(store: Store, name: str) -> int:
    """Bytes of all files of artifact `name`; raises CheckpointError if it is not committed."""
    return sum(file_entry.size_bytes for file_entry in read_entries(store, name)[2])


def find_damage(store: Store, name: str) -> str | None:
    """What is wrong with artifact `name`, or None if every byte is as committed."""
    return _find_artifact_fault(store, name, find_damaged_file)


def find_damaged_file(store: Store, folder: str, files: Iterable[FileEntry]) -> str | None:
    """As `find_damage`, of some files of a folder, which are read."""
    for file_entry in files:
        name = f"{folder}/{file_entry.name}"
        try:
            digest = store.sha256(name)
        except FileNotFoundError:
            return f"{name} is missing"
        if digest != file_entry.sha256:
            return f"{name} differs from its manifest"
    return None


def find_size_or_checksum_mismatch(store: Store, name: str) -> str | None:
    """What is wrong with artifact `name` by what storage says of its files, none of them read.

    Sizes, and checksums where storage computes them and they were recorded; None if all agree.
    """
    return _find_artifact_fault(store, name, find_mismatched_file)


def find_mismatched_file(store: Store, folder: str, files: Iterable[FileEntry]) -> str | None:
    """As `find_size_or_checksum_mismatch`, of some files of a folder."""
    for file_entry in files:
        name = f"{folder}/{file_entry.name}"
        try:
            stored_file = store.describe(name)
        except FileNotFoundError:
            return f"{name} is missing"
        distinct_checksums = {stored_file.checksum, file_entry.checksum} - {None}
        if stored_file.size_bytes != file_entry.size_bytes or len(distinct_checksums) > 1:
            return f"{name} differs from its manifest"
    return None


def _find_artifact_fault(store: Store, name: str, find: Callable[..., str | None]) -> str | None:
    try:
        folder, _, file_entries = read_entries(store, name)
    except CheckpointError as error:
        return str(error)
    return find(store, folder, file_entries)


def remove_artifact(store: Store, name: str) -> None:
    """Remove artifact `name`: pointer first, so that no reader finds it half gone."""
    try:
        folder: str | None = str(json.loads(store.read(f"{name}.json"))["folder"])
    except (FileNotFoundError, ValueError, KeyError):
        folder = None
    store.remove_file(f"{name}.json")
    if folder:
        store.remove(folder)


def _read_manifest(store: Store, name: str) -> tuple[str, bytes]:
    try:
        pointer_fields = json.loads(store.read(f"{name}.json"))
        folder, digest = str(pointer_fields["folder"]), str(pointer_fields["manifest_sha256"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{store.uri}/{name} is not committed: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{store.uri}/{name}.json is damaged: {error!r}") from error
    try:
        manifest = store.read(f"{folder}/{MANIFEST}")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{store.uri}/{name}.json points to {folder}, which is gone or was never whole"
        ) from error
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise CheckpointError(f"{store.uri}/{folder}/{MANIFEST} differs from its pointer")
    return folder, manifest
