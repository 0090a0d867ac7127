"""How many requests the object store gets, by what the proxy counts."""

import json
import time
from pathlib import Path

import pytest

from dreambooth_ray.config.checkpoint_choice import ChoiceConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.evaluation.checkpoint_follower import CheckpointFollower
from dreambooth_ray.evaluation.pareto_front import ScoredCheckpoint
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.checkpoint.save import CheckpointUploader, WorkerRank
from dreambooth_ray.training.metrics_follower import MetricsFollower
from dreambooth_ray.training.metrics_log import MetricsLog, read_metrics
from dreambooth_ray.training.stop_request import is_stop_requested
from dreambooth_ray.training.worker_messages import post_message, read_new_messages
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Background, kill_tree, start_dreambooth
from tests.integration.seaweed import Seaweed


@pytest.fixture
def run(proxied_uri: str) -> Store:
    return Store(f"{proxied_uri}/runs/one")


def plant_checkpoints(run: Store, num_checkpoints: int) -> None:
    """Pointers and manifests, as commits leave them."""
    for step in range(1, num_checkpoints + 1):
        folder = f"{paths.checkpoint(step)}-{step:012x}"
        about = {"step": step, "metrics": {"val_loss": 1.0 + step}}
        manifest.commit_uploaded(run, paths.checkpoint(step), folder, [], about)


def test_one_call_is_one_request(run: Store, fault_proxy: FaultProxy) -> None:
    run.write("there/file", b"12345")
    calls = {
        "GET": lambda: run.read("there/file") == b"12345",
        "HEAD": lambda: run.exists("there/file") and not run.exists("there"),
        "LIST": lambda: run.names("there") == ["file"] and run.names("nowhere") == [],
        "DELETE": lambda: run.remove_file("there/file") is run.remove_file("nowhere"),
    }
    for operation, call in calls.items():
        fault_proxy.forget()
        assert call()
        num_calls = 1 if operation == "GET" else 2
        assert [r.operation for r in fault_proxy.requests] == [operation] * num_calls


def test_a_folder_in_pages_and_from_a_name_on(run: Store, fault_proxy: FaultProxy) -> None:
    for number in range(4):
        run.write(f"folder/{number}/file", b"")
        run.write(f"folder/{number}.json", b"")
    fault_proxy.forget()
    assert run.names("folder", after="2.json") == ["3", "3.json"]
    assert run.names("folder", after="2") == ["2.json", "3", "3.json"]
    assert run.names("folder", limit=3) == ["0", "0.json", "1"]
    assert len(fault_proxy.requests) == 3
    fault_proxy.forget()
    run.remove("folder")
    assert fault_proxy.counts == {"DELETE": 1, "GET": 1, "POST": 1}
    # SeaweedFS goes on to list folders that have been emptied.
    assert not [name for name in run.names("folder") if name.endswith(".json")]


def test_a_bucket_may_have_any_name(seaweed: Seaweed, fault_proxy: FaultProxy) -> None:
    """The word in a path once looked like an answer that there is no such bucket."""
    store = Store(seaweed.make_bucket("a-bucket"))
    assert store.sub("nowhere").names() == []


def test_what_a_run_asks_again_and_again_is_one_request_a_look(
    run: Store, fault_proxy: FaultProxy
) -> None:
    read_names: set[str] = set()
    post_message(run, "hello")
    assert read_new_messages(run, read_names) == ["hello"]
    fault_proxy.forget()
    assert read_new_messages(run, read_names) == []
    assert not is_stop_requested(run)
    assert fault_proxy.kinds == {"LIST notice": 1, "HEAD stop": 1}


def test_following_metrics_costs_what_is_new(run: Store, fault_proxy: FaultProxy) -> None:
    log, follower = MetricsLog(run, 0), MetricsFollower(run)
    for step in range(1, 2001):
        log.append([{"step": step, "loss": 0.5}])
    log.flush()
    assert follower.read_latest_metrics() == {"step": 2000, "loss": 0.5}
    log.append([{"step": 2001, "loss": 0.5}])
    log.flush()
    fault_proxy.forget()
    assert follower.read_latest_metrics() == {"step": 2001, "loss": 0.5}
    assert fault_proxy.kinds == {"GET metrics": 1}
    assert fault_proxy.num_bytes_answered < 100


def count_commit(run: Store, proxy: FaultProxy, num_kept: int, scratch: Path) -> dict[str, int]:
    """Requests by kind of a commit, and of the rotation after it, where so many are kept.

    Of the second: before the first a process looks once what there is.
    """
    config = Config.model_validate(
        {
            "subject": {"photos": "none", "class_noun": "robot"},
            "checkpoint": {"keep": num_kept, "best": "val_loss"},
            "train": {"steps": 100_000},
        }
    )
    plant_checkpoints(run, num_kept)
    uploader = CheckpointUploader(run, config, SideWork(run), WorkerRank(0, 0, 0, 1))
    uploader.metrics_log = MetricsLog(run, 0)
    uploader.metrics_log.records = [
        {"step": step, "val_loss": 1.0 + step} for step in range(1, num_kept + 1)
    ]
    for step in (num_kept + 1, num_kept + 2):
        local = ScratchFolder(f"{num_kept}-{step}", str(scratch))
        (local.path / "state.ckpt").write_text("state")
        proxy.forget()
        uploader.submit(step, f"{step:012x}", local, {}, {"val_loss": 1.0 + step})
        uploader.finish_upload()
    return dict(proxy.kinds)


@pytest.mark.parametrize("num_kept", [100, pytest.param(1_000, marks=pytest.mark.fault)])
def test_a_commit_costs_the_same_however_many_are_kept(
    proxied_uri: str, fault_proxy: FaultProxy, tmp_path: Path, num_kept: int
) -> None:
    few = count_commit(Store(f"{proxied_uri}/runs/few"), fault_proxy, 10, tmp_path)
    many_run = Store(f"{proxied_uri}/runs/many")
    many = count_commit(many_run, fault_proxy, num_kept, tmp_path)
    assert many == few
    assert sum(many.values()) <= 15
    # The best, of step 1, outlives the oldest others.
    names = many_run.names(paths.CHECKPOINTS, limit=5)
    assert [step for step, _ in paths.parse_checkpoint_names(names)] == [1, 3]


def test_each_evaluation_is_read_once(run: Store, fault_proxy: FaultProxy) -> None:
    def evaluate(step: int) -> ScoredCheckpoint:
        return ScoredCheckpoint(step, 0.5, 0.1)

    plant_checkpoints(run, 6)
    for step in (1, 2, 3):
        totals = {"dino": 0.5, "pres": 0.1}
        run.write(paths.evaluation(step), json.dumps({"totals": totals}).encode())
    fault_proxy.forget()
    choice = ChoiceConfig(rule="best", drift="pres")
    with CheckpointFollower(run, choice, evaluate):
        pass
    kinds = fault_proxy.kinds
    # Three of them, one list of them, and the selection: at first, and after each of three more.
    assert kinds["GET evaluation"] == 3
    assert kinds["LIST evaluation"] == 1
    assert kinds["PUT evaluation"] == 4
    assert kinds["LIST checkpoints"] <= 6


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_run_in_progress_asks_at_most_thirty_times_a_minute(
    proxied_uri: str, fault_proxy: FaultProxy, photos: Path, tmp_path: Path
) -> None:
    """Beside its checkpoints: lease, requests to stop, messages, metrics and their display."""
    run = Store(f"{proxied_uri}/runs/one")
    process = start_dreambooth(
        "train", "toy-robot.yaml", f"subject.photos={photos}", f"storage.uri={proxied_uri}",
        "run_id=one", "prior.count=0", "train.steps=100000", "train.method=lora",
        "checkpoint.every=100000", "sample.every=0", cwd=tmp_path,
    )  # fmt: skip
    try:
        Background(process, tmp_path).wait_until(lambda: len(read_metrics(run)) > 4, "step 5")
        fault_proxy.forget()
        time.sleep(120)  # what is measured is a rate
        kinds = fault_proxy.kinds
    finally:
        kill_tree(process)
    print(kinds)
    assert not {"PUT data", "PUT pointer"} & kinds.keys()
    assert sum(kinds.values()) <= 2 * 30
