"""Models of the Hugging Face Hub, through huggingface_hub: its addresses, token and errors.

Nothing heavy is imported, and the library itself by who asks the hub. HF_ENDPOINT, HF_TOKEN (or the
library's own token file), HF_HUB_OFFLINE and HF_HUB_CACHE mean what they mean to the library. The
token is read by it from there at each request; nothing here holds or writes it.
"""

# ruff: noqa: PLC0415

import hashlib
import re
import time
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import StorageError
from dreambooth_ray.models.hub_errors import (
    HubModel,
    HubUnreachableError,
    explained_answers,
    hub_endpoint,
)
from dreambooth_ray.models.remote_model_files import RemoteModelFiles
from dreambooth_ray.models.weight_cache import fetched_models_folder
from dreambooth_ray.storage.local_files import replace_file

_ID = re.compile(r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>[\w./+-]+))?")
_TIMEOUT_S, _TRIES, _FIRST_WAIT_S = 10.0, 5, 0.5


def parse_hub_id(text: str) -> HubModel | None:
    """The model that OWNER/NAME or OWNER/NAME@REVISION names; None for any other text."""
    match = _ID.fullmatch(text)
    return HubModel(match["repo"], match["revision"] or "") if match else None


def pin_model(model: HubModel) -> HubModel:
    """The model at the commit that its revision means now; asked once a process.

    Where the hub can't be asked, the commit that it meant when last asked from this host.
    raises: ConfigError where there is no such model or it may not be read, HubUnreachableError
    """
    return model if model.is_pinned else HubModel(model.repo, _find_commit(model))


@cache
def _find_commit(model: HubModel) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    revision_file_stem = hashlib.sha256(f"{hub_endpoint()} {model}".encode()).hexdigest()[:32]
    revision_file = fetched_models_folder() / f"{revision_file_stem}.revision"
    try:
        with explained_answers(model):
            model_info = HfApi().model_info(
                model.repo, revision=model.revision or None, timeout=_TIMEOUT_S
            )
    except HubUnreachableError:
        if revision_file.is_file():
            return revision_file.read_text().strip()
        path = try_to_load_from_cache(
            model.repo, "model_index.json", revision=model.revision or None
        )
        if isinstance(path, str):
            return Path(path).parent.name
        raise
    with replace_file(revision_file) as partial_file:
        partial_file.write_text(str(model_info.sha))
    return str(model_info.sha)


@lru_cache(maxsize=8)
def open_hub_model(model: HubModel) -> "HubFiles":
    """The files of a model at a commit; one request a process.

    raises: ConfigError where there is no such model or it may not be read, HubUnreachableError
    """
    from huggingface_hub import HfApi

    with explained_answers(model):
        model_info = HfApi().model_info(
            model.repo, revision=model.revision, files_metadata=True, timeout=_TIMEOUT_S
        )
    return HubFiles(model, model_info.siblings or [])


def find_hub_snapshot(files: "HubFiles", names: list[str]) -> Path | None:
    """The model's folder in huggingface_hub's own cache, if all these files are there."""
    from huggingface_hub import try_to_load_from_cache

    snapshot_folder = None
    for file_name in names:
        path = try_to_load_from_cache(files.model.repo, file_name, revision=files.model.revision)
        if not isinstance(path, str) or Path(path).stat().st_size != files.sizes[file_name]:
            return None
        snapshot_folder = Path(path).parents[file_name.count("/")]
    return snapshot_folder


def find_any_snapshot(model: HubModel) -> Path | None:
    """The model's folder in huggingface_hub's own cache, whole or not."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model.repo, "model_index.json", revision=model.revision)
    return Path(path).parent if isinstance(path, str) else None


class HubFiles(RemoteModelFiles):
    """The files of a repository at a commit, read in ranges: a cut-off answer is gone on with."""

    def __init__(self, model: HubModel, siblings: list[Any]) -> None:
        """siblings: as the hub lists them, with sizes and hashes"""
        file_sizes = {s.rfilename: int(s.size or 0) for s in siblings}
        super().__init__(str(model), file_sizes, f"hub {model}")
        self.model = model
        self._siblings = {s.rfilename: s for s in siblings}

    def fetch_range(self, name: str, begin: int, end: int) -> bytes:
        """See the base class."""
        received_bytes, num_failures = bytearray(), 0
        while True:
            num_bytes_before = len(received_bytes)
            try:
                with explained_answers(self.model):
                    for chunk in self._stream_range(name, begin + num_bytes_before, end):
                        received_bytes += chunk
            except HubUnreachableError:
                if num_failures == _TRIES:
                    raise
            if len(received_bytes) >= end - begin:
                return bytes(received_bytes[: end - begin])
            # As long as something comes, it is asked for the rest.
            num_failures = num_failures + 1 if len(received_bytes) == num_bytes_before else 1
            if num_failures > _TRIES:
                raise HubUnreachableError(
                    f"{self.uri}: {name} ends at {begin + len(received_bytes)} bytes each time; "
                    "try again"
                )
            time.sleep(_FIRST_WAIT_S * 2 ** (num_failures - 1))

    def _stream_range(self, name: str, begin: int, end: int) -> Iterator[bytes]:
        from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status

        url = hf_hub_url(
            self.model.repo, name, revision=self.model.revision, endpoint=hub_endpoint()
        )
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
        if hub_token := get_token():  # not sent on to another host that it redirects to
            headers["Authorization"] = f"Bearer {hub_token}"
        with get_session().stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_S
        ) as range_response:
            hf_raise_for_status(range_response)
            # Who knows no ranges answers with all of it.
            num_skipped_bytes = begin if range_response.status_code == 200 else 0
            for chunk in range_response.iter_raw():
                yield chunk[num_skipped_bytes:]
                num_skipped_bytes = max(0, num_skipped_bytes - len(chunk))

    def check_file_hash(self, name: str, path: Path, sha256: str) -> None:
        """See the base class."""
        hub_file_record = self._siblings[name]
        if hub_file_record.lfs is not None:
            has_listed_hash = hub_file_record.lfs.sha256 == sha256
        else:
            content = path.read_bytes()
            git_blob_hash = hashlib.sha1(
                b"blob %d\0" % len(content) + content, usedforsecurity=False
            )
            has_listed_hash = hub_file_record.blob_id in (None, git_blob_hash.hexdigest())
        if not has_listed_hash:
            raise StorageError(
                f"{self.uri}: {name} arrived otherwise than the hub says (its hash is "
                f"{sha256[:12]}); try again"
            )
