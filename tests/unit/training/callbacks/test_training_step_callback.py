"""Nothing beside the step and the commit ends a run, or keeps a checkpoint from being committed."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.validation import ValidationSet
from dreambooth_ray.training.checkpoint import retention
from dreambooth_ray.training.metrics_log import FAILURES, read_metrics
from dreambooth_ray.training.worker_messages import read_new_messages
from tests.unit.training.fitted import Fitted

OVERRIDES = ("train.steps=3", "checkpoint.every=2")


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


Fit = Callable[..., Fitted]


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, photos: Path, priors: Store) -> Fitted:
    return Fitted(tiny_model, photos, priors, *OVERRIDES, "tracking.loggers=[]")


@pytest.fixture
def fit(tiny_model: Path, photos: Path, priors: Store, run: Store) -> Fit:
    """A run that keeps its checkpoints and says in `run` what went wrong."""

    def fit(*overrides: str, **options: Any) -> Fitted:
        settings = *OVERRIDES, *overrides
        return Fitted(tiny_model, photos, priors, *settings, track=run, keep=True, **options)

    return fit


def assert_whole(disturbed: Fitted, undisturbed: Fitted, run: Store) -> None:
    """Equal losses and weights, and the last step committed."""
    assert disturbed.losses() == undisturbed.losses()
    assert all(torch.equal(w, undisturbed.weights[n]) for n, w in disturbed.weights.items())
    assert retention.committed_steps(run)[-1] == 3
    assert manifest.find_damage(run, paths.checkpoint(3)) is None
    assert [r["step"] for r in read_metrics(run)] == [1, 2, 3]


def test_a_commit_that_is_late_finds_everything_it_needs(
    fit: Fit, run: Store, undisturbed: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload of the last checkpoint begins only when Lightning's loop has ended."""
    loop_ended, upload = threading.Event(), manifest.upload_files

    def late(store: Store, folder: str, local: Path) -> Any:
        if "00000003" in folder:
            assert loop_ended.wait(60)
        return upload(store, folder, local)

    monkeypatch.setattr(manifest, "upload_files", late)
    disturbed = fit(on_train_end=loop_ended.set)
    assert_whole(disturbed, undisturbed, run)
    assert read_new_messages(run, set()) == []


class Broken(CSVLogger):
    """Raises in one of its calls."""

    call = ""

    def __init__(self, folder: Path) -> None:
        self.fail_in("construct")
        super().__init__(folder, name="", version="")

    def fail_in(self, call: str) -> None:
        if call == self.call:
            raise ConnectionError(f"no {call}")

    def log_metrics(self, *arguments: Any, **settings: Any) -> None:
        self.fail_in("log")
        super().log_metrics(*arguments, **settings)

    def save(self) -> None:
        self.fail_in("flush")
        super().save()

    def finalize(self, status: str) -> None:
        self.fail_in("close")
        super().finalize(status)


@pytest.mark.parametrize("call", ["construct", "log", "flush", "close"])
def test_a_logger_that_raises_is_said_once_and_the_run_is_whole(
    fit: Fit, run: Store, undisturbed: Fitted, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(Broken, "call", call)
    monkeypatch.setattr(
        "dreambooth_ray.training.callbacks.loggers.make_logger",
        lambda name, folder, config, start: Broken(folder),
    )
    disturbed = fit("tracking.loggers=[csv]")
    assert_whole(disturbed, undisturbed, run)
    assert read_new_messages(run, set()) == [
        f"warning: logger csv failed: ConnectionError: no {call}; training goes on without"
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_under_tensorboard_is_met_in_its_own_thread(
    fit: Fit, run: Store, undisturbed: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    disturbed = fit()
    assert_whole(disturbed, undisturbed, run)
    assert any("logger tensorboard failed" in text for text in read_new_messages(run, set()))


def test_a_validation_that_fails_is_counted_in_the_metrics(
    fit: Fit, run: Store, undisturbed: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: ValidationSet) -> None:
        raise OSError("class image 4 is gone")

    monkeypatch.setattr(ValidationSet, "make_all_batches", fail)
    disturbed = fit("validation.every=2", "prior.count=5", "validation.class_images=2")
    assert_whole(disturbed, undisturbed, run)
    assert [r.get(FAILURES) for r in read_metrics(run)] == [None, 1, 2]
    assert read_new_messages(run, set()) == [
        "warning: validation failed: OSError: class image 4 is gone; training goes on without"
    ]


def test_old_checkpoints_that_can_not_be_removed_end_nothing(
    fit: Fit, run: Store, undisturbed: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError("denied")

    monkeypatch.setattr(retention, "rotate_checkpoints", fail)
    disturbed = fit()
    assert_whole(disturbed, undisturbed, run)
    assert "removing old checkpoints failed" in read_new_messages(run, set())[0]
