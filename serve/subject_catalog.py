"""What can be drawn with: base models of the configuration, and the bundles committed in storage.

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

from dreambooth_ray.config.serving import ID_PATTERN, ServeConfig
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.manifest import MANIFEST
from dreambooth_ray.storage.store import Store
from serve.api_errors import APIError, unknown_model
from serve.api_messages import ModelAnswer
from serve.replica_messages import Artifact

_LOG = logging.getLogger("dreambooth.serve")
_ID = re.compile(ID_PATTERN)
# Files a bundle may consist of: weights as safetensors alone, since a pickle can run code.
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
_SUFFIXES = {".safetensors", ".json", ".txt", ".md", ".model"}
_READERS = 16
_MANIFEST_BYTES = 2**20

Kind = Literal["base", "bundle", "adapter"]


@dataclass(frozen=True)
class ServedSubject:
    """One version of a subject, or a base model.

    version:  first 12 hex digits of the manifest's hash; empty for a base model
    fault:    why it can't be used, or None
    """

    name: str
    version: str
    kind: Kind
    artifact: Artifact
    created: float
    prompt: str | None = None
    fault: str | None = None

    @property
    def id(self) -> str:
        """As receipts name it: with its version."""
        return f"{self.name}@{self.version}" if self.version else self.name


def read_subject(run_id: str, manifest: bytes, now: float) -> ServedSubject | None:
    """The subject a bundle's manifest describes; None if it is no manifest of a bundle.

    now: seconds since the epoch, for manifests that do not say when they were made
    """
    digest = hashlib.sha256(manifest).hexdigest()
    try:
        content = json.loads(manifest)
        about, files = content["about"], [str(f["name"]) for f in content["files"]]
        kind, name = about["kind"], str(about.get("subject") or run_id)
        created = float(about.get("created_at", now))
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
        prompt if isinstance(prompt, str) else None, _fault(files),
    )  # fmt: skip


def _fault(files: list[str]) -> str | None:
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


class Catalog:
    """All subjects, looked up in storage every `refresh_s`, and at once for an unknown name."""

    def __init__(
        self,
        config: ServeConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._clock = Store(config.storage.uri), clock
        self._refresh_s, self._looked_at = config.refresh_s, -float("inf")
        self._bases = {
            name: ServedSubject(name, "", "base", Artifact(name, uri=uri), 0.0)
            for name, uri in config.models.items()
        }
        self._subjects: dict[str, ServedSubject] = {}
        self._seen: dict[str, ServedSubject] = {}
        self._looking = asyncio.Lock()

    async def watch(self) -> None:
        """Keep the catalog fresh, for as long as the process lives."""
        while True:
            try:
                await self.refresh(self._refresh_s)
            except Exception as error:  # storage that is away comes back
                _LOG.warning("subjects.refresh_failed", extra={"error": type(error).__name__})
            await asyncio.sleep(self._refresh_s)

    async def refresh(self, older_than_s: float = 0.0) -> None:
        """Look into storage, unless that was done within the last `older_than_s`."""
        async with self._looking:
            if self._clock() - self._looked_at < older_than_s:
                return
            self._subjects = await asyncio.to_thread(self._look)
            self._looked_at = self._clock()

    def _look(self) -> dict[str, ServedSubject]:
        run_ids = [n for n in self._store.names("runs") if _ID.fullmatch(n)]
        with ThreadPoolExecutor(_READERS) as pool:
            found = [s for s in pool.map(self._read, run_ids) if s is not None]
        return {s.id: s for s in found}

    def _read(self, run_id: str) -> ServedSubject | None:
        name = f"{paths.run(run_id)}/{paths.BUNDLE}/{MANIFEST}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            manifest = self._store.read(name)
            if len(manifest) > _MANIFEST_BYTES:
                return None
            known = self._seen.get(run_id)
            digest = hashlib.sha256(manifest).hexdigest()
            if known is None or known.artifact.manifest_sha256 != digest:
                known = read_subject(run_id, manifest, time.time())
                if known is not None:
                    self._seen[run_id] = known
            return known
        return None

    async def resolve(self, model: str | None, allowed: Callable[[str], bool]) -> ServedSubject:
        """The subject of a model id; the first base model if none is given.

        allowed(name): whether the caller may see a subject
        raises: Refusal 404 for what is unknown and what is not the caller's, 422 if unusable
        """
        wanted = model or next(iter(self._bases))
        if self._find(wanted) is None:
            # Perhaps committed a moment ago; a second look at most every half second.
            with contextlib.suppress(OSError):
                await self.refresh(0.5)
        subject = self._find(wanted)
        if subject is None or not allowed(subject.name):
            raise unknown_model(wanted)
        if subject.fault:
            text = f"model={subject.id!r} can't be used: {subject.fault}; commit the bundle anew"
            raise APIError(422, "model_unusable", text, param="model")
        return subject

    def _find(self, model: str) -> ServedSubject | None:
        if model in self._bases:
            return self._bases[model]
        if "@" in model:
            return self._subjects.get(model)
        versions = self.versions(model)
        return versions[0] if versions else None

    def versions(self, name: str) -> list[ServedSubject]:
        """All versions of a subject, newest first."""
        found = [s for s in self._subjects.values() if s.name == name]
        return sorted(found, key=lambda s: (s.created, s.artifact.folder or ""), reverse=True)

    def answers(self, allowed: Callable[[str], bool]) -> list[ModelAnswer]:
        """What a caller may draw with: base models, then each subject's newest version."""
        names = sorted({s.name for s in self._subjects.values()} - set(self._bases))
        found = [*self._bases.values(), *(self.versions(name)[0] for name in names)]
        return [self.answer(s) for s in found if allowed(s.name) and s.fault is None]

    def answer(self, subject: ServedSubject) -> ModelAnswer:
        """As GET /v1/models has it."""
        more: dict[str, Any] = {}
        if subject.kind != "base":
            more["versions"] = [s.id for s in self.versions(subject.name)]
        return ModelAnswer(
            id=subject.name,
            created=int(subject.created),
            owned_by="dreambooth",
            kind=subject.kind,
            prompt=subject.prompt,
            **more,
        )
