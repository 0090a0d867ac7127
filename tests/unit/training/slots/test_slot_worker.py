"""Runs of several subjects in one process, from their photographs to their bundles."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_ray.bundles.worker_export import export_with_loaded_components
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.pipeline import make_worker_job
from dreambooth_ray.preparation import PreparedRun
from dreambooth_ray.runs import is_finished, open_run
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.lease_keeper import get_run_lease_files
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.metrics_log import read_metrics
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.slots.slot_worker import SlotWorker, SubjectEvent
from dreambooth_ray.training.stop_request import clear_stop_request, request_stop
from dreambooth_ray.training.worker_job import WorkerJob
from tests.unit.training.fitted import SMALL, Fitted
from tests.unit.training.slots.slotted import LORA
from tests.unit.training.slots.test_slot_trainer import assert_close

SETTINGS = (*LORA, "train.steps=5", "checkpoint.every=2", "tracking.loggers=[]")


class Fleet:
    """Jobs whose runs are in a folder."""

    def __init__(self, folder: Path, model: Path, photos: Path, priors: Store) -> None:
        self._folder, self._model, self._photos, self._priors = folder, model, photos, priors

    def open(self, name: str, *overrides: str) -> WorkerJob:
        """A run and its job; of the settings that are given, the last count."""
        base = f"run_id: {name}\nsubject: {{photos: {self._photos}, class_noun: robot}}"
        own = (f"model.uri={self._model}", f"storage.uri={self._folder}")
        values = dict(setting.split("=", 1) for setting in (*SMALL, *SETTINGS, *own, *overrides))
        config = parse_config(base, "x", [f"{key}={value}" for key, value in values.items()])
        run = open_run(config)
        job = make_worker_job(PreparedRun(config, self._model), run)
        return WorkerJob(**{**vars(job), "priors_uri": self._priors.uri, "num_priors": 3})

    def run(self, name: str) -> Store:
        return Store(str(self._folder)).sub(f"runs/{name}")

    def train(
        self,
        jobs: Iterable[WorkerJob],
        num_slots: int,
        watch: Callable[[SubjectEvent], None] = lambda _: None,
    ) -> dict[str, SubjectEvent]:
        """The last event of each; watch: sees all"""
        jobs = list(jobs)
        worker = SlotWorker(
            jobs[0], num_slots, 4, export_with_loaded_components, torch.device("cpu")
        )
        for job in jobs:
            worker.add(job)
        worker.close()
        events = {}
        for event in worker.run():
            events[event.run_id] = event
            watch(event)
        return events


@pytest.fixture
def fleet(tmp_path: Path, tiny_model: Path, photos: Path, priors: Store) -> Fleet:
    return Fleet(tmp_path / "out", tiny_model, photos, priors)


def truncate_photograph(folder: Path) -> Path:
    write_photographs(folder, 3, "robot", 2, size_px=96)
    photograph = sorted(folder.iterdir())[0]
    photograph.write_bytes(photograph.read_bytes()[:200])
    return folder


def test_every_subject_ends_by_itself_in_a_run_as_any_other(
    fleet: Fleet, tmp_path: Path, tiny_model: Path, photos: Path, priors: Store
) -> None:
    truncated = truncate_photograph(tmp_path / "truncated")
    jobs = [
        fleet.open("healthy"),
        # Its weights are no numbers after a step.
        fleet.open("sick", "train.lr=1e30", "train.steps=9"),
        fleet.open("truncated", f"subject.photos={truncated}"),
        fleet.open("cancelled"),
        fleet.open("wide", "train.lora.rank=4", "train.steps=3", "seed=5"),
    ]
    request_stop(fleet.run("cancelled"))
    events = fleet.train(jobs, 2)
    assert {name: event.kind for name, event in events.items()} == {
        "healthy": "done",
        "sick": "failed",
        "truncated": "failed",
        "cancelled": "stopped",
        "wide": "done",
    }
    assert "no numbers" in events["sick"].note
    assert events["sick"].is_permanent
    assert "truncated" in events["truncated"].note
    for name, overrides in {
        "healthy": (), "wide": ("train.lora.rank=4", "train.steps=3", "seed=5"),
    }.items():  # fmt: skip
        run = fleet.run(name)
        alone = Fitted(tiny_model, photos, priors, *LORA, "train.steps=5", *overrides)
        assert_close(read_metrics(run), alone.watch.records)
        config = parse_config(run.read("config.yaml").decode(), "x", [])
        state = read_run_state(run, config)
        assert state.is_trained
        assert state.is_bundled
        assert (run.local_path("bundle") / "adapter/unet/adapter_model.safetensors").is_file()
    assert not is_finished(fleet.run("sick"))
    assert all(get_run_lease_files(fleet.run(name)).read_newest().is_free for name in events)
    assert Store(str(tmp_path / "out")).names("catalog")


def test_samples_and_an_early_end_are_as_in_a_run_alone(
    fleet: Fleet, tmp_path: Path, tiny_model: Path, photos: Path, priors: Store
) -> None:
    validated = (
        "validation.every=2", "validation.held_out=1", "validation.class_images=1",
        "validation.timesteps=2", "validation.bins=1", "validation.patience=1",
        "validation.min_delta=1000",
    )  # fmt: skip
    sampled = ("sample.every=2", "sample.num_inference_steps=1", "tracking.loggers=[tensorboard]")
    jobs = [
        fleet.open("impatient", *validated, "train.steps=9", "checkpoint.every=9"),
        fleet.open("sampled", *sampled),
    ]
    events = fleet.train(jobs, 2)
    assert {name: (event.kind, event.step) for name, event in events.items()} == {
        "impatient": ("done", 4), "sampled": ("done", 5),
    }  # fmt: skip
    run = fleet.run("impatient")
    alone = Fitted(tiny_model, photos, priors, *LORA, *validated, "train.steps=9")
    assert_close(read_metrics(run), alone.watch.records)
    state = read_run_state(run, parse_config(run.read("config.yaml").decode(), "x", []))
    assert (state.reason, state.is_trained, state.is_bundled) == ("early", True, True)
    folder = fleet.run("sampled").local_path(paths.TENSORBOARD)
    log = EventAccumulator(folder.as_posix()).Reload()
    (tag,) = log.Tags()["images"]
    assert tag == "samples/a sks robot"
    assert [image.step for image in log.Images(tag)] == [2, 4]


def test_a_cancelled_subject_goes_on_later(fleet: Fleet) -> None:
    whole = [fleet.open("whole", "seed=2"), fleet.open("beside", "seed=3", "train.steps=4")]
    fleet.train(whole, 2)
    expected = fleet.run("whole").read("metrics.jsonl")
    cancelled, beside = fleet.open("cancelled", "seed=2", "train.steps=5000"), fleet.open("other")

    def cancel(event: SubjectEvent) -> None:
        if event.kind == "joined" and event.run_id == "cancelled":
            request_stop(fleet.run("cancelled"))

    ended = fleet.train([beside, cancelled], 2, cancel)["cancelled"]
    assert ended.kind == "stopped"
    assert max(fence.read_history(fleet.run("cancelled")).checkpoints) == ended.step
    clear_stop_request(fleet.run("cancelled"))
    records = fleet.run("cancelled").read("metrics.jsonl")
    num_equal = min(ended.step, 5)
    assert records.splitlines()[:num_equal] == expected.splitlines()[:num_equal]
    again = fleet.open("cancelled", "seed=2", "train.steps=5000")
    again = WorkerJob(
        **{**vars(again), "config": again.config.replace("5000", str(ended.step + 3))}
    )
    assert fleet.train([again], 2)["cancelled"].kind == "done"
    steps = [record["step"] for record in read_metrics(fleet.run("cancelled"))]
    assert steps == list(range(1, ended.step + 4))


def test_a_trained_run_without_its_bundle_gets_it(fleet: Fleet) -> None:
    job = fleet.open("one", "train.steps=2")
    fleet.train([job], 1)
    run = fleet.run("one")
    for name in run.names("bundle"):
        run.remove(f"bundle/{name}")
    assert not is_finished(run)
    assert fleet.train([job], 1)["one"].kind == "done"
    assert is_finished(run)
    assert len(read_metrics(run)) == 2


@pytest.mark.fault
def test_29_subjects_learn_bit_for_bit_what_they_learn_beside_three_that_end_early(
    fleet: Fleet, tmp_path: Path
) -> None:
    truncated = truncate_photograph(tmp_path / "truncated")
    sick: dict[int, tuple[str, ...]] = {
        3: ("train.lr=1e30",), 11: (f"subject.photos={truncated}",), 20: ("train.steps=5000",),
    }  # fmt: skip

    def own(number: int) -> tuple[str, ...]:
        return (
            f"seed={number}", f"train.lora.rank={1 + number % 4}", f"train.steps={4 + number % 5}",
        )  # fmt: skip

    jobs = [
        fleet.open(f"robot-{number}", *own(number), *sick.get(number, ())) for number in range(32)
    ]

    def cancel(event: SubjectEvent) -> None:
        if event.kind == "joined" and event.run_id == "robot-20":
            request_stop(fleet.run("robot-20"))

    events = fleet.train(jobs, 32, cancel)
    kinds = [events[f"robot-{number}"].kind for number in sick]
    assert kinds == ["failed", "failed", "stopped"]
    others = [number for number in range(32) if number not in sick]
    fleet.train([fleet.open(f"other-{number}", *own(number)) for number in others], 32)
    for number in others:
        assert events[f"robot-{number}"].kind == "done"
        records = fleet.run(f"robot-{number}").read("metrics.jsonl")
        assert len(records.splitlines()) == 4 + number % 5
        assert records == fleet.run(f"other-{number}").read("metrics.jsonl")
        adapters = [
            fleet.run(f"{kind}-{number}").local_path("bundle/adapter/unet").joinpath(
                "adapter_model.safetensors"
            ).read_bytes()
            for kind in ("robot", "other")
        ]  # fmt: skip
        assert adapters[0] == adapters[1]
