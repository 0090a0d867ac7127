"""One version of a subject: a bundle committed in storage, as its manifest describes it."""

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dreambooth_ray.config.section import ID_PATTERN
from dreambooth_ray.storage import paths

_ID = re.compile(ID_PATTERN)
# Files a bundle may consist of: weights as safetensors alone, since a pickle can run code.
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
_SUFFIXES = {".safetensors", ".json", ".txt", ".md", ".model"}
_DIGITS = 12
VERSION_PATTERN = rf"^[0-9a-f]{{{_DIGITS}}}$"

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class SubjectVersion(BaseModel):
    """kind: the whole model, or adapters; created_s: Unix time; fault: why it can't be used."""

    model_config = ConfigDict(frozen=True)

    subject: Id
    run_id: Id
    manifest_sha256: Sha256
    kind: Literal["bundle", "adapter"]
    created_s: float = Field(allow_inf_nan=False)
    prompt: str | None = None
    fault: str | None = None

    @property
    def version(self) -> str:
        """First 12 hex digits of the manifest's hash."""
        return self.manifest_sha256[:_DIGITS]

    @property
    def folder(self) -> str:
        """Of the bundle, below storage.uri."""
        return f"{paths.run(self.run_id)}/{paths.BUNDLE}"


def parse_bundle_manifest(
    run_id: str, manifest: bytes, default_created_s: float = 0.0
) -> SubjectVersion | None:
    """What a run's bundle is by its manifest; None if that is no manifest of a bundle.

    default_created_s: for manifests that do not say when they were made
    """
    try:
        manifest_fields = json.loads(manifest)
        metadata = manifest_fields["about"]
        file_names = [str(f["name"]) for f in manifest_fields["files"]]
        prompt = metadata.get("prompt")
        return SubjectVersion(
            subject=str(metadata.get("subject") or run_id),
            run_id=run_id,
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
            kind=metadata["kind"],
            created_s=float(metadata.get("created_at", default_created_s)),
            prompt=prompt if isinstance(prompt, str) else None,
            fault=_find_file_name_fault(file_names),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _find_file_name_fault(file_names: list[str]) -> str | None:
    for name in file_names:
        if not _FILE.fullmatch(name) or ".." in name:
            return "its manifest names a file outside the bundle"
        # merges.txt, vocab.json and the like have suffixes; LICENSE has none and is harmless.
        suffix = PurePosixPath(name).suffix
        if suffix and suffix not in _SUFFIXES:
            return (
                f"it holds {PurePosixPath(name).name[:80]}; weights are read from safetensors alone"
            )
    return None


def is_subject_or_run_id(name: str) -> bool:
    """Whether a name can be that of a subject or run."""
    return _ID.fullmatch(name) is not None
