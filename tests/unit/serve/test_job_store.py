import time
from pathlib import Path

import pytest

from serve.api_messages import GenerationRequest
from serve.job_store import JobRecord, JobState, JobStore, new_job_id


def _add(job_store: JobStore, webhook_url: str | None = None) -> str:
    record = JobRecord(
        id=new_job_id(), caller="key:shop", model="toyworld", created_at=time.time(),
        generation=GenerationRequest(prompt="x"), webhook_url=webhook_url,
    )  # fmt: skip
    job_store.add(record, None)
    return record.id


@pytest.fixture
def job_store(tmp_path: Path) -> JobStore:
    return JobStore(str(tmp_path))


def test_a_job_is_open_until_nothing_is_left_to_do(job_store: JobStore) -> None:
    job_id, other_id = _add(job_store), _add(job_store)
    assert set(job_store.list_open_ids(10)) == {job_id, other_id}
    job_store.set_state(job_id, JobState(status="running"))
    assert len(job_store.list_open_ids(10)) == 2
    job_store.set_state(job_id, JobState(status="completed", finished_at=1000.0))
    assert job_store.list_open_ids(10) == [other_id]
    assert job_store.list_ended(10) == [(job_id, 1000.0)]


def test_a_job_whose_webhook_is_owed_stays_open(job_store: JobStore) -> None:
    job_id = _add(job_store, "https://example.com")
    state = JobState(status="completed", finished_at=1000.0, webhook="pending")
    job_store.set_state(job_id, state)
    assert job_store.list_open_ids(10) == [job_id]
    job_store.set_state(job_id, state.model_copy(update={"webhook": "delivered"}))
    assert job_store.list_open_ids(10) == []


def test_what_ended_long_ago_is_forgotten(job_store: JobStore) -> None:
    old_id, new_id = _add(job_store), _add(job_store)
    job_store.set_state(old_id, JobState(status="completed", finished_at=1000.0))
    job_store.set_state(new_id, JobState(status="completed", finished_at=2000.0))
    job_store.forget_ended(before_s=1500.0)
    assert job_store.list_ended(10) == [(new_id, 2000.0)]
    assert job_store.read_state(new_id).status == "completed"
    with pytest.raises(Exception, match="not known"):
        job_store.read_state(old_id)


def test_jobs_of_earlier_versions_are_sorted_in(job_store: JobStore, tmp_path: Path) -> None:
    open_id, ended_id = _add(job_store), _add(job_store)
    job_store.set_state(ended_id, JobState(status="failed", finished_at=1000.0))
    (tmp_path / f"serve/jobs/open/{open_id}").unlink()
    (tmp_path / f"serve/jobs/ended/000000001000-{ended_id}").unlink()
    job_store.sort_in_all(10)
    assert job_store.list_open_ids(10) == [open_id]
    assert job_store.list_ended(10) == [(ended_id, 1000.0)]
