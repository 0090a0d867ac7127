"""Real runs whose holder is followed, or frozen for twice its lease and woken."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.paths import LEASES
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from tests.integration.conftest import (
    DREAMBOOTH,
    SMALL,
    Background,
    Run,
    dreambooth,
    kill_tree,
    start_dreambooth,
)

LEASE_S = 12.0
WORDS = [*SMALL, "cluster.workers=1", "sample.every=0", f"cluster.lease_s={LEASE_S}"]


@pytest.mark.fault
def test_a_holder_that_was_followed_ends_its_whole_job_with_a_word(
    in_background: Callable[..., Background],
) -> None:
    run = in_background(*WORDS, "train.steps=100000")
    run.wait_for_step(2)
    tree = psutil.Process(run.process.pid).children(recursive=True)
    (run.folder / LEASES / "000002.json").write_text("{}")
    _, errors = run.process.communicate(timeout=120)
    assert run.process.returncode == 2
    last_line = errors.strip().splitlines()[-1]
    assert last_line.startswith("error: ")
    assert "taken over by another process" in last_line
    assert psutil.wait_procs(tree, timeout=60)[1] == []
    assert (run.folder / LEASES / "000002.json").read_text() == "{}"


@pytest.fixture
def on_another_host(
    tmp_path: Path, photos: Path, storage: str
) -> Iterator[Callable[..., Background]]:
    """Starts a training whose processes can not be looked up from here."""
    started: list[subprocess.Popen[str]] = []
    try:
        subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no process namespaces here: {error}")

    def start(run_id: str, *overrides: str) -> Background:
        words = [
            "unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
            DREAMBOOTH, "train", "toy-robot.yaml", f"subject.photos={photos}", f"run_id={run_id}",
            storage, *overrides,
        ]  # fmt: skip
        process = subprocess.Popen(
            words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        folder = Path(storage.removeprefix("storage.uri=")) / "runs" / run_id
        return Background(process, folder)

    yield start
    for process in started:
        send_to_tree(process, signal.SIGCONT)
        kill_tree(process)


def send_to_tree(process: "subprocess.Popen[str]", number: int) -> None:
    """A signal to a command and everything it started."""
    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    for child in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(child.pid, number)


@pytest.mark.fault
def test_a_holder_frozen_for_twice_its_lease_and_woken_mixes_nothing_in(
    on_another_host: Callable[..., Background],
    undisturbed_alone: Run,
    tmp_path: Path,
    storage: str,
) -> None:
    frozen = on_another_host("frozen", *WORDS)
    store = Store(str(frozen.folder))
    frozen.wait_until(lambda: committed_steps(store) != [], "a checkpoint")
    send_to_tree(frozen.process, signal.SIGSTOP)
    frozen_at_s = time.monotonic()
    heir = start_dreambooth("resume", store.uri, cwd=tmp_path)
    try:
        is_late = False
        while heir.poll() is None and not is_late:
            is_late = time.monotonic() - frozen_at_s > 2 * LEASE_S
            time.sleep(0.05)
        has_heir_ended = heir.poll() is not None
        send_to_tree(frozen.process, signal.SIGCONT)
        _, frozen_errors = frozen.process.communicate(timeout=300)
        _, errors = heir.communicate(timeout=300)
    finally:
        kill_tree(heir)
    assert heir.returncode == 0, errors
    assert f"waiting up to {LEASE_S:g} s" in errors
    # Followed by one who works: refused. By one who has ended: it finds a run that is finished.
    assert frozen.process.returncode == (0 if has_heir_ended else 2), frozen_errors
    assert "another" in frozen_errors.strip().splitlines()[-1]
    assert Run(frozen.folder).curve == undisturbed_alone.curve
    assert is_finished(store)


@pytest.fixture(scope="module")
def undisturbed_alone(tmp_path_factory: pytest.TempPathFactory, photos: Path, storage: str) -> Run:
    folder = tmp_path_factory.mktemp("alone")
    done = dreambooth(
        "train", "toy-robot.yaml", f"subject.photos={photos}", storage, *WORDS, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return Run(Path(done.stdout.splitlines()[-1]))
