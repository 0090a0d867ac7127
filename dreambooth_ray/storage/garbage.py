"""What a storage holds that nothing needs, and its removal.

Whatever might still be in use stays: what is younger than a bound, what a run or its lease holds,
what a pointer names. Pointers go before what they name, so that nobody finds a thing half gone.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import DreamBoothError, StorageError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.file_listing import find_modified_s, list_files
from dreambooth_ray.storage.store import Store

# A lease that says it is held is believed for so long after it was last written.
LEASE_S = 3600.0
_PHOTOGRAPHS = "photographs/"
# An artifact's folder: its name and a nonce; its pointer is the name with .json.
_ARTIFACT_FOLDER = re.compile(r"(?P<name>.+)-[0-9a-f]{12}")
_READERS = 16


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing needs.

    name: relative to the storage; modified_s: Unix time of its newest change
    marks: files elsewhere that only say something of it
    """

    name: str
    reason: str
    size_bytes: int
    modified_s: float
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunReferences:
    """What a run holds. prior_set: digest; photographs: artifact names; is_held: by a process.

    problem: why it can't be read, "" where it can; then what it uses is not known
    """

    run_id: str
    prior_set: str | None
    photographs: frozenset[str]
    is_held: bool
    problem: str = ""


def find_garbage(
    storage: Store,
    before_s: float,
    now_s: float,
    say: Callable[[str], None] = lambda message: None,
) -> list[Garbage]:
    """Half uploads, class images and photographs that no run uses, sorted by name.

    While a run can't be read, nobody knows which class images and photographs it uses: all stay.

    before_s: Unix time; what has changed since stays. now_s: Unix time
    say: is told which run can't be read, and why
    raises: StorageError
    """
    run_references = _read_all_references(storage, now_s)
    garbage_items = [
        *_find_run_garbage(
            storage, [reference.run_id for reference in run_references if not reference.is_held]
        ),
        *_find_half_uploads(storage, "", f"{paths.MODELS}/"),
        *_find_half_uploads(storage, "", _PHOTOGRAPHS),
    ]
    unreadable_runs = [reference for reference in run_references if reference.problem]
    for reference in unreadable_runs:
        say(
            f"all class images and photographs stay, as nobody knows which of them run "
            f"{reference.run_id} uses: {reference.problem}"
        )
    if not unreadable_runs:
        garbage_items += _find_unused_priors(storage, run_references)
        used_photographs = frozenset[str]().union(*(run.photographs for run in run_references))
        garbage_items += _find_unused_photographs(storage, used_photographs)
    return sorted(
        (garbage_item for garbage_item in garbage_items if garbage_item.modified_s < before_s),
        key=lambda garbage_item: garbage_item.name,
    )


def remove_garbage(storage: Store, item: Garbage, now_s: float) -> bool:
    """Remove it, unless a run has come to use it meanwhile; whether it was removed."""
    is_half_upload = _ARTIFACT_FOLDER.fullmatch(item.name) is not None
    if is_half_upload and _may_be_committed(storage, item.name):
        return False
    if item.name.startswith((f"{paths.PRIORS}/", _PHOTOGRAPHS)) and not is_half_upload:
        run_references = _read_all_references(storage, now_s)
        if any(reference.problem for reference in run_references):
            return False
        used_names = {
            paths.prior_set(reference.prior_set)
            for reference in run_references
            if reference.prior_set
        }
        if item.name in used_names.union(*(reference.photographs for reference in run_references)):
            return False
    if item.name.startswith(_PHOTOGRAPHS) and not is_half_upload:
        if (find_modified_s(storage, f"{item.name}.json") or 0.0) > item.modified_s:
            return False
        manifest.remove_artifact(storage, item.name)
        return True
    for file_name in storage.names(item.name):
        if file_name.endswith(".json"):
            storage.remove_file(f"{item.name}/{file_name}")
    storage.remove(item.name)
    for mark_file in item.marks:
        storage.remove_file(mark_file)
    return True


def _may_be_committed(storage: Store, folder: str) -> bool:
    """Whether a half upload was finished since it was found: a pointer names it, or is damaged."""
    artifact_name, _, nonce = folder.rpartition("-")
    try:
        pointed_folder = str(json.loads(storage.read(f"{artifact_name}.json"))["folder"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return True
    return pointed_folder.endswith(f"-{nonce}")


def _read_all_references(storage: Store, now_s: float) -> list[RunReferences]:
    """What each run holds, also those that have begun while others were read."""
    references_by_run: dict[str, RunReferences] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        while new_runs := [name for name in storage.names("runs") if name not in references_by_run]:
            for reference in pool.map(
                lambda run_id: read_run_references(storage, run_id, now_s), new_runs
            ):
                references_by_run[reference.run_id] = reference
    return list(references_by_run.values())


def read_run_references(storage: Store, run_id: str, now_s: float) -> RunReferences:
    """What a run holds; one that can't be read counts as held. Raises StorageError."""
    run_store = storage.sub(paths.run(run_id))
    prior_set_digest, photograph_artifacts = None, frozenset[str]()
    try:
        prior_set_digest = str(json.loads(run_store.read(paths.PRIOR_USE))["set"])
    except FileNotFoundError:
        pass
    except NotADirectoryError:  # a file that something else has left among the runs
        return RunReferences(run_id, None, frozenset(), is_held=True)
    except (ValueError, KeyError, TypeError) as error:
        problem = (
            f"{run_store.uri}/{paths.PRIOR_USE} is damaged ({error!r}); remove it, and class "
            "images are made again where they are needed"
        )
        return RunReferences(run_id, None, frozenset(), is_held=True, problem=problem)
    try:
        config = parse_config(run_store.read(paths.CONFIG).decode(), run_store.uri, [])
        photograph_uris = (subject.photos.rstrip("/") for subject in config.all_subjects)
        photograph_artifacts = frozenset(
            "/".join(uri.rsplit("/", 2)[-2:]) for uri in photograph_uris
        )
    except FileNotFoundError:
        pass  # a folder that something else has left
    except StorageError:
        raise
    except (DreamBoothError, UnicodeDecodeError) as error:
        problem = f"{run_store.uri}/{paths.CONFIG} can't be read here: {error}"
        return RunReferences(run_id, prior_set_digest, frozenset(), is_held=True, problem=problem)
    return RunReferences(
        run_id, prior_set_digest, photograph_artifacts, _is_run_held(run_store, now_s)
    )


def _is_run_held(run: Store, now_s: float) -> bool:
    lease_files = list_files(run, paths.LEASES)
    if not lease_files or now_s - lease_files[-1].modified_s > LEASE_S:
        return False
    try:
        return not json.loads(run.read(f"{paths.LEASES}/{lease_files[-1].name}")).get(
            "released", False
        )
    except (FileNotFoundError, ValueError, AttributeError):
        return True


def _find_run_garbage(storage: Store, run_ids: list[str]) -> Iterator[Garbage]:
    for run_id in run_ids:
        yield from _find_half_uploads(storage, paths.run(run_id), f"{paths.CHECKPOINTS}/")


def _find_unused_priors(storage: Store, run_references: list[RunReferences]) -> Iterator[Garbage]:
    used_sets = {reference.prior_set for reference in run_references}
    growing_sets = {reference.prior_set for reference in run_references if reference.is_held}
    for set_digest in storage.names(paths.PRIORS):
        set_folder = paths.prior_set(set_digest)
        if set_digest not in used_sets:
            yield from _make_folder_garbage(storage, set_folder, "class images that no run uses")
        elif set_digest not in growing_sets:
            yield from _find_half_uploads(storage, set_folder, "")


def _find_unused_photographs(storage: Store, used: frozenset[str]) -> Iterator[Garbage]:
    for file_name in storage.names(_PHOTOGRAPHS):
        artifact_name = f"{_PHOTOGRAPHS}{file_name.removesuffix('.json')}"
        if not file_name.endswith(".json") or artifact_name in used:
            continue
        folder = manifest.find_artifact_folder(storage, artifact_name)
        reason = "photographs that no run uses"
        for garbage_item in _make_folder_garbage(storage, folder, reason) if folder else ():
            # Whoever is about to use them renews the pointer.
            renewed_s = find_modified_s(storage, f"{artifact_name}.json") or 0.0
            modified_s = max(garbage_item.modified_s, renewed_s)
            yield replace(garbage_item, name=artifact_name, modified_s=modified_s)


def _find_half_uploads(storage: Store, owner: str, folder: str) -> Iterator[Garbage]:
    """Folders of artifacts that no pointer names.

    owner: folder of what committed them, which pointers are relative to, "" for the storage
    folder: where artifacts lie in it, "" or with a slash at its end
    """
    store, parent_prefix = (storage.sub(owner), f"{owner}/") if owner else (storage, "")
    listed_names = set(store.names(folder.rstrip("/")))
    folders_by_artifact: dict[str, list[str]] = {}
    for listed_name in sorted(listed_names):
        if match := _ARTIFACT_FOLDER.fullmatch(listed_name):
            folders_by_artifact.setdefault(match.group("name"), []).append(listed_name)
    for artifact_name, folder_names in folders_by_artifact.items():
        committed_folder = None
        if f"{artifact_name}.json" in listed_names:
            committed_folder = manifest.find_artifact_folder(store, f"{folder}{artifact_name}")
            # A pointer that can't be followed is for those who read it to judge.
            if committed_folder is None:
                continue
        for listed_name in folder_names:
            if f"{folder}{listed_name}" != committed_folder:
                yield from _make_folder_garbage(
                    storage, f"{parent_prefix}{folder}{listed_name}", "half an upload"
                )


def _make_folder_garbage(storage: Store, name: str, reason: str) -> Iterator[Garbage]:
    """The folder as garbage; nothing where it holds no file."""
    folder_files = list_files(storage, name)
    if folder_files:
        size_bytes = sum(listed_file.size_bytes for listed_file in folder_files)
        yield Garbage(
            name, reason, size_bytes, max(listed_file.modified_s for listed_file in folder_files)
        )
