"""What can be served: base models of the configuration, and the subjects of the storage's catalog.

Nothing is listed to find a subject: its entry is one request, and its bundle's manifest another
before it is drawn with. Storage is asked for nothing while nobody asks here.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.subject_version import SubjectVersion, is_subject_or_run_id
from dreambooth_ray.storage.version_catalog import (
    SubjectEntry,
    SubjectVersionCatalog,
    SubjectVersionRef,
)
from dreambooth_ray.storage.version_catalog_rebuild import is_catalog_complete, rebuild_catalog
from serve.api_errors import APIError, model_not_found_error, storage_away_error
from serve.api_messages import ModelAnswer, ModelsAnswer
from serve.auth import Caller
from serve.poll_timer import log_and_suppress_failure
from serve.replica_messages import Artifact
from serve.subject_lookup import SubjectLookup
from serve.subject_pages import SubjectPages, parse_page_cursor

_LOG = logging.getLogger("dreambooth.serve")
# Storage that is away is not waited for by a request: what was read before stands.
_PATIENCE_S = 2.0
_TRIED_VERSIONS, _PAGES_AT_ONCE = 4, 4
# Runs without entries, of earlier releases: so many are looked through by the endpoint itself.
_MOST_RUNS_AT_START, _PREPARE_RETRY_S, _PREPARE_WAIT_S = 1000, 10.0, 5.0

SubjectKind = Literal["base", "bundle", "adapter"]


@dataclass(frozen=True)
class ServedSubject:
    """One version of a subject, or a base model.

    version: first 12 hex digits of the manifest's hash; empty for a base model
    """

    name: str
    version: str
    kind: SubjectKind
    artifact: Artifact
    created: float
    prompt: str | None = None

    @property
    def id(self) -> str:
        """As receipts name it: with its version."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @classmethod
    def from_subject_version(cls, version: SubjectVersion) -> "ServedSubject":
        """A committed version."""
        artifact = Artifact(
            f"{version.subject}@{version.version}",
            folder=version.folder,
            manifest_sha256=version.manifest_sha256,
        )
        return cls(
            version.subject, version.version, version.kind, artifact, version.created_s,
            version.prompt,
        )  # fmt: skip


class SubjectCatalog:
    """Finds subjects, and lists them page by page."""

    def __init__(self, config: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog = SubjectVersionCatalog(Store(config.storage.uri), _PATIENCE_S)
        self._lookup = SubjectLookup(self._catalog, config.refresh_s, clock)
        self._pages = SubjectPages(self._catalog)
        self._page_pool = ThreadPoolExecutor(_PAGES_AT_ONCE, "pages")
        self._bases = {
            name: ServedSubject(name, "", "base", Artifact(name, uri=uri), 0.0)
            for name, uri in config.models.items()
        }
        self._is_prepared = asyncio.Event()
        self._is_prepared.set()

    def start_catalog_rebuild(self) -> Coroutine[None, None, None]:
        """Make entries for the runs of earlier releases, where nobody has done so yet.

        Until what it returns has been awaited, who asks for an unknown subject waits for it.
        """
        self._is_prepared.clear()
        return self._rebuild_catalog_with_retries()

    async def _rebuild_catalog_with_retries(self) -> None:
        while True:
            with log_and_suppress_failure("subjects.prepare_failed"):
                await asyncio.to_thread(self._rebuild_incomplete_catalog)
                self._lookup.invalidate_all_entries()
                self._is_prepared.set()
                return
            await asyncio.sleep(_PREPARE_RETRY_S)

    def _rebuild_incomplete_catalog(self) -> None:
        if is_catalog_complete(self._catalog):
            return
        num_runs = len(self._catalog.store.names("runs", limit=_MOST_RUNS_AT_START + 1))
        if num_runs <= _MOST_RUNS_AT_START:
            rebuild_catalog(self._catalog)
        else:
            _LOG.warning(
                f"subjects.catalog_incomplete: more than {_MOST_RUNS_AT_START} runs, and those of "
                "earlier releases have no entries; run once: dreambooth catalog rebuild "
                f"{self._catalog.store.uri}"
            )

    async def _wait_for_catalog_rebuild(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PREPARE_WAIT_S):
                await self._is_prepared.wait()

    async def resolve_served_subject(
        self, model: str | None, is_allowed: Callable[[str], bool]
    ) -> ServedSubject:
        """The subject of a model id; the first base model if none is given.

        is_allowed(name): whether the caller may see a subject
        raises: APIError 404 for what is unknown and what is not the caller's, 422 if unusable, 503
            if storage does not answer and the subject was not looked up before
        """
        model_id = model or next(iter(self._bases))
        name, _, version = model_id.partition("@")
        if not is_subject_or_run_id(name) or not is_allowed(name):
            raise model_not_found_error(model_id)
        if model_id in self._bases:
            return self._bases[model_id]
        for version_ref in await self._find_versions(name, version):
            committed_version = await self._lookup.read_committed_version(version_ref)
            if committed_version is None or committed_version.subject != name:
                continue  # deleted by hand: an older version may be there
            if committed_version.fault:
                error_message = (
                    f"model={model_id!r} can't be used: {committed_version.fault}; "
                    "commit the bundle anew"
                )
                raise APIError(422, "model_unusable", error_message, param="model")
            return ServedSubject.from_subject_version(committed_version)
        raise model_not_found_error(model_id)

    async def _find_versions(self, name: str, version: str) -> list[SubjectVersionRef]:
        """Versions to try in turn: one if it is named, else the newest."""
        was_catalog_complete = self._is_prepared.is_set()
        entry = await self._lookup.read_entry(name)
        if entry is None and not was_catalog_complete:
            await self._wait_for_catalog_rebuild()
            entry = await self._lookup.read_entry(name)
        version_refs = list(entry.versions) if entry else []
        return (
            [r for r in version_refs if r.version == version]
            if version
            else version_refs[:_TRIED_VERSIONS]
        )

    async def describe_model(self, model: str, is_allowed: Callable[[str], bool]) -> ModelAnswer:
        """A model as GET /v1/models/{model} has it; raises APIError as `resolve_served_subject`."""
        subject = await self.resolve_served_subject(model, is_allowed)
        if subject.kind == "base":
            return _build_model_answer(subject)
        entry = await self._lookup.read_entry(subject.name)
        return _build_model_answer(subject, entry.versions if entry else ())

    async def list_models_page(self, limit: int, after: str | None, caller: Caller) -> ModelsAnswer:
        """What a caller may use: base models, then subjects in the catalog's order.

        after: the `last_id` of the page before
        raises: APIError 400 for an `after` that can't be one, 503 if storage does not answer
        """
        await self._wait_for_catalog_rebuild()
        base_names_after_cursor, listing_start = self._find_page_start(after)
        visible_base_names = [
            name for name in base_names_after_cursor if caller.may_see_subject(name)
        ]
        model_answers = [
            _build_model_answer(self._bases[name]) for name in visible_base_names[:limit]
        ]
        next_page_cursor: str | None = (
            visible_base_names[limit - 1] if len(visible_base_names) > limit else None
        )
        if next_page_cursor is None:
            entries, next_page_cursor = await self._read_page(
                listing_start, limit - len(visible_base_names), caller
            )
            subjects_with_entries = [
                (ServedSubject.from_subject_version(e.newest), e) for e in entries
            ]
            model_answers += [
                _build_model_answer(s, e.versions)
                for s, e in subjects_with_entries
                if e.newest.fault is None
            ]
        last_listed_id = model_answers[-1].id if model_answers else None
        return ModelsAnswer(
            data=model_answers,
            has_more=next_page_cursor is not None,
            first_id=model_answers[0].id if model_answers else None,
            last_id=next_page_cursor or last_listed_id,
        )

    def _find_page_start(self, after: str | None) -> tuple[list[str], str]:
        """Base models that follow, and where subjects begin."""
        base_names = list(self._bases)
        if after is None:
            return base_names, ""
        if after in self._bases:
            return base_names[base_names.index(after) + 1 :], ""
        listing_start = parse_page_cursor(after)
        if listing_start is None:
            error_message = (
                f"after={after[:120]!r} is no model; give the last_id of the page before"
            )
            raise APIError(400, "invalid_value", error_message, param="after")
        return [], listing_start

    async def _read_page(
        self, start: str, limit: int, caller: Caller
    ) -> tuple[list[SubjectEntry], str | None]:
        def read_page() -> tuple[list[SubjectEntry], str | None]:
            subject_names, next_page_cursor = self._pages.list_subjects(
                start, limit, caller, self._bases.__contains__
            )
            return self._pages.read_entries(subject_names), next_page_cursor

        try:
            return await asyncio.get_running_loop().run_in_executor(self._page_pool, read_page)
        except (StorageError, OSError) as error:
            raise storage_away_error() from error


def _build_model_answer(
    subject: ServedSubject, versions: tuple[SubjectVersionRef, ...] = ()
) -> ModelAnswer:
    """As GET /v1/models has it."""
    optional_fields: dict[str, Any] = {}
    if subject.kind != "base":
        optional_fields["versions"] = [f"{subject.name}@{ref.version}" for ref in versions]
    return ModelAnswer(
        id=subject.name,
        created=int(subject.created),
        owned_by="dreambooth",
        kind=subject.kind,
        prompt=subject.prompt,
        **optional_fields,
    )
