"""Jobs in storage that no endpoint will look at any more."""

import json
import re
from collections.abc import Iterator

from dreambooth_ray.queue.work_records import work_record_path
from dreambooth_ray.storage.file_listing import ListedFile, list_files
from dreambooth_ray.storage.garbage import Garbage
from dreambooth_ray.storage.store import Store
from serve.image_job_store import FOLDER

# Endpoints forget their jobs themselves, after jobs.keep_s; these are of endpoints that are gone.
ENDED_S = 7 * 86_400.0
_JOB = re.compile(r"(?:.*[/-])?(job_[0-9a-f]{32})(?:\.json|/[^/]+)?")


def find_image_job_garbage(storage: Store, before_s: float, now_s: float) -> Iterator[Garbage]:
    """Jobs that ended a week ago or longer, and jobs that were never wholly written or removed.

    before_s: Unix time; what has changed since stays. now_s: Unix time
    raises: StorageError
    """
    files_by_job: dict[str, list[ListedFile]] = {}
    for job_file in list_files(storage, FOLDER):
        if job_match := _JOB.fullmatch(job_file.name):
            files_by_job.setdefault(job_match.group(1), []).append(job_file)
    for job_id, job_files in sorted(files_by_job.items()):
        modified_s = max(job_file.modified_s for job_file in job_files)
        if modified_s >= before_s:
            continue
        garbage_reason = _find_garbage_reason(
            storage, job_id, {job_file.name for job_file in job_files}, now_s
        )
        if garbage_reason is not None:
            queue_files = [
                job_file.name
                for job_file in job_files
                if not job_file.name.startswith(f"{job_id}/")
            ]
            yield Garbage(
                f"{FOLDER}/{job_id}", garbage_reason,
                sum(job_file.size_bytes for job_file in job_files), modified_s,
                tuple(f"{FOLDER}/{name}" for name in queue_files),
            )  # fmt: skip


def _find_garbage_reason(storage: Store, job_id: str, names: set[str], now_s: float) -> str | None:
    # The queue's, or an earlier version's.
    record_files = {f"queue/{work_record_path(job_id)}", f"{job_id}/request.json"}
    if not record_files & names or f"{job_id}/state.json" not in names:
        return "half a job"
    try:
        state = json.loads(storage.read(f"{FOLDER}/{job_id}/state.json"))
        finished_s = float(state["finished_at"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    if now_s - finished_s < ENDED_S:
        return None
    return "a job that ended long ago"
