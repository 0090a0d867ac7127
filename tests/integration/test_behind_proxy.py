"""What is kept in an object store, behind a proxy that spoils one request in ten."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.prior_set import PriorImageRecord, read_chunk_records
from dreambooth_ray.data.remote_images import fetch_photographs_folder, upload_photographs
from dreambooth_ray.priors.prior_generation import read_committed_chunks
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import SubjectVersionCatalog, publish_run, withdraw_run
from dreambooth_ray.storage.version_catalog_rebuild import rebuild_catalog
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.checkpoint import download, retention
from dreambooth_ray.training.checkpoint.save import CheckpointUploader, WorkerRank
from dreambooth_ray.training.metrics_log import MetricsLog, read_metrics
from serve.api_errors import APIError
from serve.api_messages import GenerationRequest
from serve.image_job_records import ImageJobRecord, ImageJobState, new_image_job_id
from serve.image_job_store import ImageJobStore
from serve.subject_catalog import SubjectCatalog
from tests.fault_proxy import OUTAGES, FaultProxy, FaultSchedule, Request

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.fault) for seed in (1, 2))]


@pytest.fixture(params=SEEDS)
def faulty_uri(proxied_uri: str, fault_proxy: FaultProxy, request: pytest.FixtureRequest) -> str:
    """A storage one in ten of whose requests goes wrong."""
    fault_proxy.schedule = FaultSchedule(request.param, one_in=10)
    return proxied_uri


def files_of(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.fault
def test_checkpoints_are_whole_and_rotated(
    faulty_uri: str, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    run = Store(f"{faulty_uri}/runs/one")
    config = Config.model_validate(
        {"subject": {"photos": "none", "class_noun": "robot"}, "checkpoint": {"keep": 2}}
    )
    side_work = SideWork(run)
    uploader = CheckpointUploader(run, config, side_work, WorkerRank(0, 0, 0, 1))
    for step in range(1, 6):
        local = ScratchFolder(str(step), str(tmp_path))
        for name, text in {"state.ckpt": f"state {step}", "more": "x"}.items():
            (local.path / name).write_text(text)
        uploader.submit(step, f"{step:012x}", local, {}, {})
        uploader.finish_upload()
    side_work.close(60)
    assert fault_proxy.faults
    assert side_work.num_failures == 0
    assert retention.committed_steps(run) == [4, 5]
    assert not any(manifest.find_damage(run, paths.checkpoint(step)) for step in (4, 5))
    restored = download.download_newest_checkpoint(run, tmp_path / "out")
    assert restored is not None
    assert restored.state.read_text() == "state 5"


@pytest.mark.fault
def test_metrics_are_whole(faulty_uri: str) -> None:
    run = Store(f"{faulty_uri}/runs/one")
    log = MetricsLog(run, 0)
    for step in range(1, 30):
        log.append([{"step": step}])
        log.flush()
        assert [r["step"] for r in read_metrics(run)] == list(range(1, step + 1))


@pytest.mark.fault
def test_class_images_are_whole(faulty_uri: str, tmp_path: Path) -> None:
    store = Store(f"{faulty_uri}/priors/set")
    for number in range(6):
        record = PriorImageRecord(number, number, False, 0)
        folder = files_of(tmp_path / str(number), a="1", b="2")
        about: dict[str, object] = {"records": [record.to_json()]}
        manifest.commit_artifact(store, paths.prior_chunk_artifact(number), folder, about)
        assert read_chunk_records(store, number) == [record]
    assert sorted(read_committed_chunks(store)) == list(range(6))


def test_photographs_come_back_as_they_were(faulty_uri: str, photos: Path) -> None:
    uri = upload_photographs(photos, Store(faulty_uri))
    found = find_photographs(fetch_photographs_folder(uri))
    assert [p.read_bytes() for p in found] == [p.read_bytes() for p in find_photographs(photos)]


def test_a_job_is_done_once(faulty_uri: str) -> None:
    jobs, job_id = ImageJobStore(faulty_uri), new_image_job_id()
    generation = GenerationRequest.model_validate({"prompt": "a robot", "model": "base"})
    record = ImageJobRecord(
        id=job_id, caller="me", model="base", created_at=1.0, generation=generation
    )
    jobs.add(record, None)
    work = jobs.claim(record, lease_s=60)
    assert work is not None
    assert jobs.claim(record, lease_s=60) is None
    assert jobs.renew_claim(work)
    jobs.set_progress(job_id, 3, 10, {0: b"preview"})
    jobs.set_state(job_id, ImageJobState(status="completed", finished_at=2.0))
    jobs.finish_or_give_back(work)
    assert jobs.count_open(9) == (0, 0)
    assert jobs.build_answer(jobs.read_record(job_id), None).status == "completed"
    jobs.forget_ended(before_s=time.time() + 60)
    with pytest.raises(APIError, match="is not known"):
        jobs.read_record(job_id)


def test_a_bundle_is_found_by_the_catalog(faulty_uri: str, tmp_path: Path) -> None:
    store = Store(faulty_uri)
    folder = files_of(tmp_path / "in", **{"model_index.json": "{}"})
    for number in range(6):
        about: dict[str, object] = {"kind": "bundle", "subject": f"robot-{number % 3}"}
        run = store.sub(f"runs/r{number}")
        manifest.upload_folder_with_manifest(
            run, paths.BUNDLE, folder, about | {"created_at": number}
        )
        publish_run(run)
    withdraw_run(store.sub("runs/r0"))
    withdraw_run(store.sub("runs/r3"))
    subjects = SubjectCatalog(ServeConfig.model_validate({"storage": {"uri": faulty_uri}}))

    async def resolve(name: str) -> str | None:
        return (await subjects.resolve_served_subject(name, lambda _: True)).artifact.folder

    with pytest.raises(APIError, match="is not served here"):
        asyncio.run(resolve("robot-0"))
    assert [asyncio.run(resolve(f"robot-{k}")) for k in (1, 2)] == [
        "runs/r4/bundle",
        "runs/r5/bundle",
    ]
    assert sorted(SubjectVersionCatalog(store).list_subjects()) == ["robot-1", "robot-2"]
    report = rebuild_catalog(SubjectVersionCatalog(store))
    assert (report.num_added, report.num_removed) == (2, 0)


def test_a_schedule_is_the_same_for_the_same_seed() -> None:
    request = Request("GET", "/bucket/key?list-type=2&prefix=runs%2Fone%2Fleases%2F")
    assert request.kind == "LIST lease"
    one, again = FaultSchedule(7), FaultSchedule(7)
    faults = [one(request) for _ in range(400)]
    assert faults == [again(request) for _ in range(400)]
    assert sum(fault is not None for fault in faults) == 20
    assert {fault for fault in faults if fault} <= set(OUTAGES)
    assert all(any(faults[k : k + 20]) for k in range(0, 400, 20))
    assert json.dumps(faults) != json.dumps([FaultSchedule(8)(request) for _ in range(400)])
