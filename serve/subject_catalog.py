"""What can be served: base models of the configuration, and the bundles committed in storage.

A bundle counts from the moment its manifest is there, and no longer than that.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from dreambooth_ray.config.section import ID_PATTERN
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from serve.api_errors import APIError, model_not_found_error
from serve.api_messages import ModelAnswer
from serve.replica_messages import Artifact

_LOG = logging.getLogger("dreambooth.serve")
_ID = re.compile(ID_PATTERN)
# Files a bundle may consist of: weights as safetensors alone, since a pickle can run code.
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
_SUFFIXES = {".safetensors", ".json", ".txt", ".md", ".model"}
_READERS = 16
_MANIFEST_BYTES = 2**20

SubjectKind = Literal["base", "bundle", "adapter"]


@dataclass(frozen=True)
class ServedSubject:
    """One version of a subject, or a base model.

    version:  first 12 hex digits of the manifest's hash; empty for a base model
    fault:    why it can't be used, or None
    """

    name: str
    version: str
    kind: SubjectKind
    artifact: Artifact
    created: float
    prompt: str | None = None
    fault: str | None = None

    @property
    def id(self) -> str:
        """As receipts name it: with its version."""
        return f"{self.name}@{self.version}" if self.version else self.name


def parse_subject(run_id: str, manifest: bytes, default_created: float) -> ServedSubject | None:
    """The subject a bundle's manifest describes; None if it is no manifest of a bundle.

    default_created: seconds since the epoch, for manifests that do not say when they were made
    """
    digest = hashlib.sha256(manifest).hexdigest()
    try:
        content = json.loads(manifest)
        about, files = content["about"], [str(f["name"]) for f in content["files"]]
        kind, name = about["kind"], str(about.get("subject") or run_id)
        created = float(about.get("created_at", default_created))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if kind not in ("bundle", "adapter") or not _ID.fullmatch(name):
        return None
    id_ = f"{name}@{digest[:12]}"
    folder = f"{paths.run(run_id)}/{paths.BUNDLE}"
    artifact = Artifact(id_, folder=folder, manifest_sha256=digest)
    prompt = about.get("prompt")
    return ServedSubject(
        name, digest[:12], kind, artifact, created,
        prompt if isinstance(prompt, str) else None, _find_fault(files),
    )  # fmt: skip


def _find_fault(files: list[str]) -> str | None:
    for name in files:
        if not _FILE.fullmatch(name) or ".." in name:
            return "its manifest names a file outside the bundle"
        # merges.txt, vocab.json and the like have suffixes; LICENSE has none and is harmless.
        suffix = PurePosixPath(name).suffix
        if suffix and suffix not in _SUFFIXES:
            return (
                f"it holds {PurePosixPath(name).name[:80]}; weights are read from safetensors alone"
            )
    return None


class SubjectCatalog:
    """All subjects, looked up in storage every `refresh_s`, and at once for an unknown name."""

    def __init__(
        self,
        config: ServeConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._clock = Store(config.storage.uri), clock
        self._refresh_s, self._refreshed_at_s = config.refresh_s, -float("inf")
        self._bases = {
            name: ServedSubject(name, "", "base", Artifact(name, uri=uri), 0.0)
            for name, uri in config.models.items()
        }
        self._subjects: dict[str, ServedSubject] = {}
        self._subjects_by_run: dict[str, ServedSubject] = {}
        self._refresh_lock = asyncio.Lock()

    async def watch_storage(self) -> None:
        """Keep the catalog fresh, for as long as the process lives."""
        while True:
            try:
                await self.refresh(self._refresh_s)
            except Exception as error:  # storage that is away comes back
                _LOG.warning("subjects.refresh_failed", extra={"error": type(error).__name__})
            await asyncio.sleep(self._refresh_s)

    async def refresh(self, older_than_s: float = 0.0) -> None:
        """Look into storage, unless that was done within the last `older_than_s`."""
        async with self._refresh_lock:
            if self._clock() - self._refreshed_at_s < older_than_s:
                return
            self._subjects = await asyncio.to_thread(self._read_subjects)
            self._refreshed_at_s = self._clock()

    def _read_subjects(self) -> dict[str, ServedSubject]:
        run_ids = [n for n in self._store.names("runs") if _ID.fullmatch(n)]
        with ThreadPoolExecutor(_READERS) as pool:
            subjects = [s for s in pool.map(self._read_subject, run_ids) if s is not None]
        return {s.id: s for s in subjects}

    def _read_subject(self, run_id: str) -> ServedSubject | None:
        name = f"{paths.run(run_id)}/{paths.BUNDLE}/{MANIFEST}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            manifest = self._store.read(name)
            if len(manifest) > _MANIFEST_BYTES:
                return None
            subject = self._subjects_by_run.get(run_id)
            digest = hashlib.sha256(manifest).hexdigest()
            if subject is None or subject.artifact.manifest_sha256 != digest:
                subject = parse_subject(run_id, manifest, time.time())
                if subject is not None:
                    self._subjects_by_run[run_id] = subject
            return subject
        return None

    async def resolve(self, model: str | None, is_allowed: Callable[[str], bool]) -> ServedSubject:
        """The subject of a model id; the first base model if none is given.

        is_allowed(name): whether the caller may see a subject
        raises: APIError 404 for what is unknown and what is not the caller's, 422 if unusable
        """
        model_id = model or next(iter(self._bases))
        if self._find_subject(model_id) is None:
            # Perhaps committed a moment ago; a second read at most every half second.
            with contextlib.suppress(OSError):
                await self.refresh(0.5)
        subject = self._find_subject(model_id)
        if subject is None or not is_allowed(subject.name):
            raise model_not_found_error(model_id)
        if subject.fault:
            text = f"model={subject.id!r} can't be used: {subject.fault}; commit the bundle anew"
            raise APIError(422, "model_unusable", text, param="model")
        return subject

    def _find_subject(self, model: str) -> ServedSubject | None:
        if model in self._bases:
            return self._bases[model]
        if "@" in model:
            return self._subjects.get(model)
        versions = self.list_versions(model)
        return versions[0] if versions else None

    def list_versions(self, name: str) -> list[ServedSubject]:
        """All versions of a subject, newest first."""
        subjects = [s for s in self._subjects.values() if s.name == name]
        return sorted(subjects, key=lambda s: (s.created, s.artifact.folder or ""), reverse=True)

    def list_answers(self, is_allowed: Callable[[str], bool]) -> list[ModelAnswer]:
        """What a caller may use: base models, then each subject's newest version."""
        names = sorted({s.name for s in self._subjects.values()} - set(self._bases))
        subjects = [*self._bases.values(), *(self.list_versions(name)[0] for name in names)]
        return [self.build_answer(s) for s in subjects if is_allowed(s.name) and s.fault is None]

    def build_answer(self, subject: ServedSubject) -> ModelAnswer:
        """As GET /v1/models has it."""
        optional_fields: dict[str, Any] = {}
        if subject.kind != "base":
            optional_fields["versions"] = [s.id for s in self.list_versions(subject.name)]
        return ModelAnswer(
            id=subject.name,
            created=int(subject.created),
            owned_by="dreambooth",
            kind=subject.kind,
            prompt=subject.prompt,
            **optional_fields,
        )
