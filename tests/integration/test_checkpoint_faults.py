"""Checkpoints on a real object store: their writer is killed in every phase, or the store is."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import download, retention
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at
from tests.waiting import wait_until

pytestmark = pytest.mark.fault

# Brings steps 1 and 2 to storage, then dies just before the Nth change that step 3 makes
# there: one process a phase, each forked before it has opened anything.
WRITER = """
import json, os, signal, sys
from pathlib import Path
from dreambooth_ray.config.schema import Config
from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.save import WorkerRank, CheckpointUploader
from dreambooth_ray.training.callbacks.side_work import SideWork

config = Config.model_validate(
    {"subject": {"photos": "none", "class_noun": "robot"}, "checkpoint": {"keep": 2}}
)
base, scratch, phases = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
changes, log = None, []

def watched(name):
    original = getattr(Store, name)
    def call(self, *arguments):
        global changes
        if changes is not None:
            changes -= 1
            log.append(name)
            if changes == 0:
                print(json.dumps(log), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)
    setattr(Store, name, call)

for name in ("upload", "write", "create", "remove_file", "remove"):
    watched(name)

def bring(phase):
    global changes
    run = Store(f"{base}/{phase}")
    uploader = CheckpointUploader(run, config, SideWork(run), WorkerRank(0, 0, 0, 1))
    for step in (1, 2, 3):
        local = ScratchFolder(f"{phase}-{step}", str(scratch))
        for name in ("state.ckpt", "more"):
            (local.path / name).write_text(f"{name} {step}")
        changes = phase if step == 3 else None
        uploader.submit(step, f"{step:012x}", local, {}, {})
        uploader.finish_upload()

for phase in range(1, phases + 1):
    child = os.fork()
    if not child:
        bring(phase)
        print(json.dumps("whole"), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
PHASES = 7


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("seaweed") / "data")
    with pointed_at(server.environment):
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def bucket(weed: Seaweed) -> str:
    return weed.make_bucket("faults")


def test_a_writer_killed_in_any_phase_leaves_whole_checkpoints(bucket: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, f"{bucket}/phases", str(tmp_path), str(PHASES)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    logs = [json.loads(line) for line in done.stdout.splitlines()]
    # Before all, between files, before the manifest, before the pointer, in rotation, none left.
    assert logs == [
        ["upload"],
        ["upload", "upload"],
        ["upload", "upload", "write"],
        ["upload", "upload", "write", "create"],
        ["upload", "upload", "write", "create", "remove_file"],
        ["upload", "upload", "write", "create", "remove_file", "remove"],
        "whole",
    ]
    for phase, log in enumerate(logs, start=1):
        run, newest = Store(f"{bucket}/phases/{phase}"), 3 if len(log) > 4 else 2
        found = download.download_newest_checkpoint(run, tmp_path / f"restored-{phase}")
        assert found is not None
        assert found.step == newest
        assert found.state.read_text() == f"state.ckpt {newest}"
        # Nobody finds one that is not whole.
        for step in retention.committed_steps(run):
            assert manifest.find_damage(run, paths.checkpoint(step)) is None


def test_an_object_store_that_is_gone_for_a_minute_is_waited_for(
    weed: Seaweed, bucket: str, tmp_path: Path
) -> None:
    local, run = tmp_path / "large", Store(f"{bucket}/outage")
    local.mkdir()
    for number in range(200):
        (local / f"{number:03d}").write_bytes(bytes([number]) * 50_000)
    with ThreadPoolExecutor(1) as pool:
        name = paths.checkpoint(1)
        upload = pool.submit(manifest.commit_artifact, run, name, local, {"step": 1})
        wait_until(lambda: len(list_files(run)) > 3)
        weed.kill()
        assert not upload.done()
        threading.Event().wait(60)  # the outage itself
        weed.start()
        upload.result(timeout=180)
    assert manifest.find_damage(run, name) is None


def list_files(run: Store) -> list[str]:
    return [f for n in run.names(paths.CHECKPOINTS) for f in run.names(f"checkpoints/{n}")]


def test_one_of_eight_conditional_writes_wins(bucket: str) -> None:
    run = Store(f"{bucket}/race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: run.create("pointer.json", str(n).encode()), range(8)))
    assert sum(won) == 1
    assert run.read("pointer.json") == str(won.index(True)).encode()
