import time
from pathlib import Path

import pytest

from dreambooth_ray.storage.garbage import remove_garbage
from dreambooth_ray.storage.store import Store
from serve.api_errors import APIError
from serve.api_messages import GenerationRequest
from serve.image_job_garbage import ENDED_S, find_image_job_garbage
from serve.image_job_records import ImageJobRecord, ImageJobState, new_image_job_id
from serve.image_job_store import FOLDER, ImageJobStore


def add_job(storage: Store, finished_at: float | None) -> str:
    jobs, job_id = ImageJobStore(storage.uri), new_image_job_id()
    generation = GenerationRequest.model_validate({"prompt": "a robot", "model": "base"})
    record = ImageJobRecord(
        id=job_id, caller="me", model="base", created_at=1.0, generation=generation
    )
    jobs.add(record, None)
    jobs.set_state(job_id, ImageJobState(finished_at=finished_at))
    return job_id


def test_jobs_that_ended_long_ago_and_halves_are_garbage(tmp_path: Path) -> None:
    # A minute from now, as the test runs: collecting a whole suite takes longer.
    storage, now_s = Store(str(tmp_path)), time.time() + 60
    old = add_job(storage, now_s - 2 * ENDED_S)
    kept = [add_job(storage, now_s - 100), add_job(storage, None)]
    half = new_image_job_id()
    storage.write(f"{FOLDER}/{half}/image", b"upload")
    items = list(find_image_job_garbage(storage, now_s, now_s))
    assert {item.name.removeprefix(f"{FOLDER}/"): item.reason for item in items} == {
        old: "a job that ended long ago",
        half: "half a job",
    }
    assert list(find_image_job_garbage(storage, now_s - 3600, now_s)) == []
    assert all(remove_garbage(storage, item, now_s) for item in items)
    assert list(find_image_job_garbage(storage, now_s, now_s)) == []
    with pytest.raises(APIError):
        ImageJobStore(storage.uri).read_record(old)

    left = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in left if old in name or half in name]
    assert all(ImageJobStore(storage.uri).read_record(job_id).id == job_id for job_id in kept)


@pytest.mark.parametrize("state", ["[]", '{"finished_at": "soon"}', '{"finished_at": [1]}', "x"])
def test_a_damaged_state_ends_no_search(tmp_path: Path, state: str) -> None:
    storage, now_s = Store(str(tmp_path)), time.time() + 60
    damaged, old = add_job(storage, 1.0), add_job(storage, now_s - 2 * ENDED_S)
    storage.write(f"{FOLDER}/{damaged}/state.json", state.encode())
    assert [item.name for item in find_image_job_garbage(storage, now_s, now_s)] == [
        f"{FOLDER}/{old}"
    ]
