"""A fleet in slots, killed again and again, on this machine."""

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest
import yaml

from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics
from tests.integration.conftest import dreambooth, kill_tree, read_curve, start_dreambooth
from tests.unit.training.slots.test_slot_trainer import assert_close

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]

NAMES = [f"robot-{number}" for number in range(6)]
STEPS = 40
SETTINGS = [
    "train.method=lora", "train.text_encoder=false", "train.lr=1e-3", f"train.steps={STEPS}",
    "prior.count=6", "prior.actors=1", "prior.num_inference_steps=3", "sample.every=0",
    "checkpoint.every=10", "cluster.workers=1",
]  # fmt: skip


def write_fleet(folder: Path, storage: str, slots: int = 6, parallel: int = 2) -> str:
    own = {
        name: [f"train.lora.rank={2 + seed}", f"train.lr={1 + seed}e-4"]
        for seed, name in enumerate(NAMES)
    }
    return write_subjects(folder, storage, slots, parallel, own)


def write_subjects(
    folder: Path, storage: str, slots: int, parallel: int, own: dict[str, list[str]]
) -> str:
    """own: overrides of each subject"""
    subjects = []
    for seed, name in enumerate(own):
        if not (folder / name).exists():
            write_photographs(folder / name, seed, "robot", 3, size_px=96)
        subject = {"id": name, "photos": name, "class_noun": "robot", "overrides": own[name]}
        subjects.append(subject)
    fleet = {"recipe": "toy-robot", "slots": slots, "parallel": parallel, "subjects": subjects}
    file = folder / f"{storage}.yaml"
    file.write_text(yaml.safe_dump(fleet | {"overrides": [*SETTINGS, f"storage.uri={storage}"]}))
    return file.name


def run_of(folder: Path, storage: str, name: str) -> Store:
    return Store(str(folder / storage)).sub(f"runs/{name}")


def count_steps(folder: Path, storage: str, names: Iterable[str] = NAMES) -> int:
    """Steps of all subjects so far, by their metrics."""
    return sum(len(read_metrics(run_of(folder, storage, name))) for name in names)


def wait_until(is_met: Callable[[], bool], process: psutil.Process | None = None) -> None:
    while not is_met():
        assert process is None or process.is_running()
        time.sleep(0.2)  # the interval of a poll


def find_workers(fleet_pid: int) -> list[psutil.Process]:
    children = psutil.Process(fleet_pid).children(recursive=True)
    return [child for child in children if "SlotActor" in " ".join(child.cmdline())]


def test_killed_workers_and_a_killed_fleet_lose_no_subject_and_no_step(tmp_path: Path) -> None:
    whole = dreambooth("fleet", write_fleet(tmp_path, "whole"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    file = write_fleet(tmp_path, "killed")
    for fraction in (0.2, 0.6):
        fleet = start_dreambooth("fleet", file, cwd=tmp_path)
        for kill_at in (fraction, fraction + 0.2):
            num_steps = int(kill_at * STEPS * len(NAMES))
            wait_until(lambda n=num_steps: count_steps(tmp_path, "killed") >= n)  # type: ignore[misc]
            if kill_at == fraction:
                find_workers(fleet.pid)[0].kill()
        kill_tree(fleet)
    # With other slots: what is left goes on in them.
    last = dreambooth("fleet", write_fleet(tmp_path, "killed", 4, 1), cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    for name in NAMES:
        own, expected = (run_of(tmp_path, storage, name) for storage in ("killed", "whole"))
        assert is_finished(own)
        assert [record["step"] for record in read_metrics(own)] == list(range(1, STEPS + 1))
        # To the bit where the batches are as large: what is left may share smaller ones.
        assert_close(read_metrics(own), read_metrics(expected))
    again = dreambooth("fleet", file, cwd=tmp_path)
    assert again.stdout.count("was done before") == len(NAMES)


def test_a_subject_of_a_fleet_is_a_run_as_any_other(tmp_path: Path) -> None:
    """It is listed, goes on alone with more steps, and its bundle samples."""
    name = NAMES[0]
    file = tmp_path / write_fleet(tmp_path, "out")
    fleet = yaml.safe_load(file.read_text())
    fleet["subjects"] = fleet["subjects"][:2]
    file.write_text(yaml.safe_dump(fleet))
    assert dreambooth("fleet", file.name, cwd=tmp_path).returncode == 0
    listing = dreambooth("ls", "--storage", "out", cwd=tmp_path)
    assert listing.stdout.count("finished") == 2, listing.stdout
    run = f"out/runs/{name}"
    resumed = dreambooth("resume", run, "train.steps=70", "--force", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    steps = [record["step"] for record in read_metrics(run_of(tmp_path, "out", name))]
    assert steps == list(range(1, 71))
    image = dreambooth("generate", run, "--num-inference-steps", "2", cwd=tmp_path)
    assert image.returncode == 0, image.stderr


def test_a_killed_run_of_the_queue_is_taken_up_by_the_next(tmp_path: Path) -> None:
    file = write_fleet(tmp_path, "queued")
    assert dreambooth("fleet", "add", file, cwd=tmp_path).returncode == 0
    again = dreambooth("fleet", "add", file, cwd=tmp_path)
    assert again.returncode == 2
    assert "already" in again.stderr
    assert (
        dreambooth("fleet", "cancel", NAMES[5], "--storage", "queued", cwd=tmp_path).returncode == 0
    )
    run = ("fleet", "run", "--storage", "queued", "--slots", "6")
    first = start_dreambooth(*run, cwd=tmp_path)
    wait_until(lambda: count_steps(tmp_path, "queued") >= STEPS)
    kill_tree(first)
    second = dreambooth(*run, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    listing = dreambooth("fleet", "ls", "--storage", "queued", "--state", "ended", cwd=tmp_path)
    assert listing.stdout.count(" done ") == 5, listing.stdout
    assert listing.stdout.count(" cancelled ") == 1
    for name in NAMES[:5]:
        own = run_of(tmp_path, "queued", name)
        assert is_finished(own)
        assert [record["step"] for record in read_metrics(own)] == list(range(1, STEPS + 1))


# Ranks, rates and numbers of steps differ.
STEPS_OF_32 = {f"robot-{number}": 12 + number % 4 * 4 for number in range(32)}
OWN_OF_32 = {
    name: [
        f"train.lora.rank={1 + number % 5}", f"train.lr={1 + number % 7}e-4",
        f"train.steps={num_steps}", "train.batch_size=1", "prior.count=4", "checkpoint.every=5",
        "tracking.loggers=[]",
    ]
    for number, (name, num_steps) in enumerate(STEPS_OF_32.items())
}  # fmt: skip


@pytest.mark.timeout(3600)
def test_32_subjects_of_a_queue_whose_workers_and_owner_are_killed_three_times(
    tmp_path: Path,
) -> None:
    """Twice as many as slots: some wait, some train and some are done when each kill comes."""
    whole_file = write_subjects(tmp_path, "whole", 16, 2, OWN_OF_32)
    whole = dreambooth("fleet", whole_file, cwd=tmp_path, timeout_s=1500)
    assert whole.returncode == 0, whole.stderr
    file = write_subjects(tmp_path, "killed", 16, 2, OWN_OF_32)
    added = dreambooth("fleet", "add", file, cwd=tmp_path)
    assert added.returncode == 0, added.stderr
    run = ("fleet", "run", "--storage", "killed", "--slots", "16", "--parallel", "2")
    num_all = sum(STEPS_OF_32.values())
    for fraction in (0.1, 0.35, 0.6):
        owner = start_dreambooth(*run, cwd=tmp_path)
        owner_process = psutil.Process(owner.pid)
        for kill_at in (fraction, fraction + 0.15):
            wait_until(
                lambda n=int(kill_at * num_all): count_steps(tmp_path, "killed", OWN_OF_32) >= n,  # type: ignore[misc]
                owner_process,
            )
            if kill_at == fraction:
                find_workers(owner.pid)[0].kill()
        tree = owner_process.children(recursive=True)
        # The owner alone; what it has started finds out by itself.
        owner.send_signal(signal.SIGKILL)
        owner.wait(timeout=30)
        psutil.wait_procs(tree, timeout=60)
    # With other slots: what is left goes on in them.
    again = ("fleet", "run", "--storage", "killed", "--slots", "12")
    last = dreambooth(*again, cwd=tmp_path, timeout_s=1500)
    assert last.returncode == 0, last.stderr
    listing = dreambooth("fleet", "ls", "--storage", "killed", "--state", "ended", cwd=tmp_path)
    assert listing.stdout.count(" done ") == len(OWN_OF_32), listing.stdout
    for name, num_steps in STEPS_OF_32.items():
        own, expected = (run_of(tmp_path, storage, name) for storage in ("killed", "whole"))
        assert is_finished(own)
        assert [record["step"] for record in read_metrics(own)] == list(range(1, num_steps + 1))
        # To the bit where the batches are as large: what is left may share smaller ones.
        assert_close(read_curve(own), read_curve(expected))
