import time
from pathlib import Path

import pytest

from dreambooth_ray.queue.claims import ClaimedWork
from serve.api_messages import GenerationRequest
from serve.image_job_records import (
    ImageJobRecord,
    ImageJobState,
    new_image_job_id,
    parse_image_job_record,
)
from serve.image_job_store import ImageJobStore

LEASE_S = 30.0


def make_record(caller: str = "key:shop", webhook_url: str | None = None) -> ImageJobRecord:
    return ImageJobRecord(
        id=new_image_job_id(), caller=caller, model="toyworld", created_at=time.time(),
        generation=GenerationRequest(prompt="x"), webhook_url=webhook_url,
    )  # fmt: skip


def add(job_store: ImageJobStore, caller: str = "key:shop", webhook_url: str | None = None) -> str:
    record = make_record(caller, webhook_url)
    job_store.add(record, None)
    return record.id


def claim(job_store: ImageJobStore) -> ClaimedWork:
    work = job_store.claim_next(LEASE_S)
    assert work is not None
    return work


def end(job_store: ImageJobStore, job_id: str, finished_at: float = 1000.0) -> None:
    """As its runner does."""
    work = job_store.claim(job_store.read_record(job_id), LEASE_S)
    assert work is not None
    job_store.set_state(job_id, ImageJobState(status="completed", finished_at=finished_at))
    job_store.finish_or_give_back(work)


@pytest.fixture
def job_store(tmp_path: Path) -> ImageJobStore:
    return ImageJobStore(str(tmp_path))


def test_a_job_is_open_until_nothing_is_left_to_do(job_store: ImageJobStore) -> None:
    job_id = add(job_store)
    add(job_store)
    assert job_store.count_open(10) == (0, 2)
    work = claim(job_store)
    assert work.record.id == job_id
    assert job_store.count_open(10) == (1, 1)
    job_store.finish_or_give_back(work)  # it is not over: others go on with it
    assert job_store.count_open(10) == (0, 2)
    end(job_store, job_id)
    assert job_store.count_open(10) == (0, 1)
    assert job_store.read_state(job_id).status == "completed"


def test_callers_take_turns(job_store: ImageJobStore) -> None:
    """Whoever asks for much delays nobody else's first."""
    for caller in ("key:shop", "key:shop", "key:shop", "10.0.0.1"):
        add(job_store, caller)
    records = [parse_image_job_record(claim(job_store).record) for _ in range(4)]
    assert {record.caller for record in records[:2]} == {"key:shop", "10.0.0.1"}
    assert job_store.claim_next(LEASE_S) is None


def test_a_caller_of_any_name_has_jobs(job_store: ImageJobStore) -> None:
    for caller in ("", "x" * 5000, "..", "a/b c"):
        add(job_store, caller)
    callers = {parse_image_job_record(claim(job_store).record).caller for _ in range(4)}
    assert callers == {"", "x" * 5000, "..", "a/b c"}


def test_a_job_whose_webhook_is_owed_stays_open(job_store: ImageJobStore) -> None:
    job_id = add(job_store, webhook_url="https://example.com")
    state = ImageJobState(status="completed", finished_at=1000.0, webhook="pending")
    work = claim(job_store)
    job_store.set_state(job_id, state)
    job_store.finish_or_give_back(work)
    assert job_store.count_open(10) == (0, 1)
    work = claim(job_store)
    job_store.set_state(job_id, state.model_copy(update={"webhook": "delivered"}))
    job_store.finish_or_give_back(work)
    assert job_store.count_open(10) == (0, 0)


def test_one_runner_has_a_job(job_store: ImageJobStore, tmp_path: Path) -> None:
    job_id, other_store = add(job_store), ImageJobStore(str(tmp_path))
    record = job_store.read_record(job_id)
    work = job_store.claim(record, LEASE_S)
    assert work is not None
    assert other_store.claim(record, LEASE_S) is None
    assert other_store.claim_next(LEASE_S) is None
    assert job_store.renew_claim(work)
    # As that of a process that has ended.
    work.lease.release()
    other_store.put_back_orphans(LEASE_S)
    assert claim(other_store).record.id == job_id


def test_what_ended_long_ago_is_forgotten(job_store: ImageJobStore, tmp_path: Path) -> None:
    old_id, new_id = add(job_store), add(job_store)
    end(job_store, old_id)
    between_s = time.time()
    while time.time() * 1000 < between_s * 1000 + 2:
        pass  # ends are told apart by milliseconds
    end(job_store, new_id)
    job_store.forget_ended(before_s=between_s + 0.001)
    assert job_store.read_state(new_id).status == "completed"
    with pytest.raises(Exception, match="not known"):
        job_store.read_record(old_id)
    assert not [path for path in tmp_path.rglob("*") if old_id in path.name]


def plant_earlier(folder: Path, job_id: str, state: ImageJobState, mark: str | None) -> None:
    """A job as earlier versions stored it. mark: below serve/jobs"""
    jobs = folder / "serve/jobs"
    record = make_record().model_copy(update={"id": job_id})
    (jobs / job_id).mkdir(parents=True)
    (jobs / job_id / "request.json").write_text(record.model_dump_json())
    (jobs / job_id / "state.json").write_text(state.model_dump_json())
    if mark is not None:
        (jobs / mark).parent.mkdir(exist_ok=True)
        (jobs / mark).write_bytes(b"")


def test_jobs_of_earlier_versions_are_done_and_forgotten(
    job_store: ImageJobStore, tmp_path: Path
) -> None:
    over = ImageJobState(status="failed", finished_at=1000.0)
    marked_id, bare_id, ended_id, bare_ended_id = (new_image_job_id() for _ in range(4))
    plant_earlier(tmp_path, marked_id, ImageJobState(), f"open/{marked_id}")
    plant_earlier(tmp_path, bare_id, ImageJobState(), None)
    plant_earlier(tmp_path, ended_id, over, f"ended/000000001000-{ended_id}")
    plant_earlier(tmp_path, bare_ended_id, over, None)
    assert job_store.read_record(marked_id).caller == "key:shop"
    for _ in range(2):
        job_store.adopt_earlier_version_jobs()
        assert job_store.count_open(10) == (0, 2)
    assert {claim(job_store).record.id for _ in range(2)} == {marked_id, bare_id}
    job_store.forget_ended(before_s=2000.0)
    for job_id in (ended_id, bare_ended_id):
        with pytest.raises(Exception, match="not known"):
            job_store.read_record(job_id)
    assert job_store.read_state(marked_id).status == "queued"


def test_a_job_of_an_earlier_version_that_is_running_is_left_to_its_runner(
    job_store: ImageJobStore, tmp_path: Path
) -> None:
    """Both versions run while an endpoint is updated."""
    job_id = new_image_job_id()
    plant_earlier(tmp_path, job_id, ImageJobState(status="running"), f"open/{job_id}")
    lease = ImageJobStore(str(tmp_path))._queue._claims.claim(job_id, LEASE_S)
    assert lease is not None
    assert (tmp_path / "serve/jobs" / job_id / "lease-0001.json").exists()
    job_store.adopt_earlier_version_open_jobs()
    assert job_store.claim_next(LEASE_S) is None
    lease.release()
    assert claim(job_store).record.id == job_id
