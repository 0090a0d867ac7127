import json
from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.transfer import UploadRecord
from dreambooth_ray.training.checkpoint import download, retention
from dreambooth_ray.training.checkpoint.convert import load_trained_weights


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def commit(run: Store, step: int, tmp_path: Path) -> None:
    folder = tmp_path / f"in-{step}"
    folder.mkdir()
    (folder / download.STATE).write_text(str(step))
    manifest.commit_artifact(run, paths.checkpoint(step), folder, {"step": step})


def damage(run: Store, step: int) -> None:
    pointer = json.loads(run.read(f"{paths.checkpoint(step)}.json"))
    run.write(f"{pointer['folder']}/{download.STATE}", b"damaged")


def test_a_new_run_has_nothing_to_restore(run: Store, tmp_path: Path) -> None:
    assert download.download_newest_checkpoint(run, tmp_path) is None


def test_the_newest_intact_one_is_taken(run: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    damage(run, 30)
    restored = download.download_newest_checkpoint(run, tmp_path / "out")
    assert restored is not None
    assert (restored.step, restored.state.read_text()) == (20, "20")


def test_with_none_intact_it_says_so(run: Store, tmp_path: Path) -> None:
    commit(run, 10, tmp_path)
    damage(run, 10)
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        download.download_newest_checkpoint(run, tmp_path / "out")


def test_rotation_keeps_the_newest(run: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    retention.rotate_checkpoints(run, num_kept=2)
    assert retention.committed_steps(run) == [20, 30]
    assert len(run.names(paths.CHECKPOINTS)) == 4


def test_rotation_deletes_nothing_while_the_newest_is_damaged(run: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    damage(run, 30)
    retention.rotate_checkpoints(run, num_kept=1)
    assert retention.committed_steps(run) == [10, 20, 30]


def test_rotation_reads_no_file_of_a_checkpoint(
    run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20, 30):
        commit(run, step, tmp_path)
    for reading in ("sha256", "download"):
        monkeypatch.setattr(Store, reading, None)
    retention.rotate_checkpoints(run, num_kept=1)
    assert retention.committed_steps(run) == [30]


def test_weights_are_sorted_by_part(tmp_path: Path) -> None:
    one, two = torch.ones(1), torch.zeros(2)
    torch.save({"state_dict": {"unet.a.b": one, "text_encoder.c": two}}, tmp_path / "s")
    parts = load_trained_weights(tmp_path / "s")
    assert parts["unet"].keys() == {"a.b"}
    assert parts["text_encoder"].keys() == {"c"}


def test_rotation_keeps_the_best_as_well(run: Store, tmp_path: Path) -> None:
    for step, loss in ((10, 0.5), (20, 0.1), (30, 0.3), (40, 0.2)):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / download.STATE).write_text("x")
        about: dict[str, object] = {"step": step, "metrics": {"val_loss": loss}}
        manifest.commit_artifact(run, paths.checkpoint(step), folder, about)
        retention.rotate_checkpoints(run, num_kept=1, best_metric="val_loss")
    assert retention.committed_steps(run) == [20, 40]


def test_a_damaged_one_is_passed_over_aloud(run: Store, tmp_path: Path) -> None:
    for step in (10, 20):
        commit(run, step, tmp_path)
    damage(run, 20)
    words: list[str] = []
    download.download_newest_checkpoint(run, tmp_path / "out", words.append)
    assert len(words) == 1
    assert "step 20 is passed over" in words[0]


@pytest.mark.parametrize("pointer", [None, b"", b"[]", b'{"folder": 1'])
def test_a_pointer_to_nothing_is_passed_over_for_the_one_before(
    run: Store, tmp_path: Path, pointer: bytes | None
) -> None:
    for step in (10, 20):
        commit(run, step, tmp_path)
    if pointer is None:
        run.remove(str(manifest.find_artifact_folder(run, paths.checkpoint(20))))
    else:
        run.write(f"{paths.checkpoint(20)}.json", pointer)
    words: list[str] = []
    restored = download.download_newest_checkpoint(run, tmp_path / "out", words.append)
    assert restored is not None
    assert restored.step == 10
    assert ("which is gone" if pointer is None else "is damaged") in words[0]


KEEP_ONE = parse_config(
    "subject: {photos: none, class_noun: robot}\ncheckpoint: {keep: 1}", "test", []
)


def test_rotation_removes_what_counts_no_more(run: Store, tmp_path: Path) -> None:
    commit(run, 10, tmp_path)
    run.write(paths.takeover_file(2, 10), b"{}")
    commit(run, 20, tmp_path)  # of a holder that was followed
    retention.remove_old_checkpoints(run, KEEP_ONE, lease=2)
    assert retention.committed_steps(run) == [10]
    assert [name for name in run.names(paths.CHECKPOINTS) if "step-00000020" in name] == []


def test_who_was_followed_removes_nothing(run: Store, tmp_path: Path) -> None:
    for step in (10, 20):
        commit(run, step, tmp_path)
    run.write("leases/000002.json", b"{}")
    retention.remove_old_checkpoints(run, KEEP_ONE, lease=1)
    assert retention.committed_steps(run) == [10, 20]
    retention.remove_old_checkpoints(run, KEEP_ONE, lease=2)
    assert retention.committed_steps(run) == [20]


@pytest.mark.parametrize(
    ("about", "words"),
    [({"model_hash": "b"}, "another model"), ({"strategy": "fsdp2"}, "strategy=fsdp2")],
)
def test_what_does_not_fit_is_refused(about: dict[str, object], words: str, tmp_path: Path) -> None:
    restored = download.DownloadedCheckpoint(5, Path("x"), about)
    with pytest.raises(CheckpointError, match=words):
        download.check_same_model_and_strategy(
            restored, "ddp", download.BaseModel(tmp_path, "a"), "run"
        )


class Killed(BaseException):
    """What SIGKILL is to a process: nothing after it runs."""


class Mortal(Store):
    """Dies before its n-th change."""

    lives = 0

    def _die(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise Killed

    def write(self, name: str, data: bytes) -> None:
        self._die()
        super().write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._die()
        return super().create(name, data)

    def upload(self, local: Path, name: str) -> UploadRecord:
        self._die()
        return super().upload(local, name)

    def remove(self, name: str) -> None:
        self._die()
        super().remove(name)


def test_a_kill_in_any_phase_leaves_the_newest_committed_one(tmp_path: Path) -> None:
    """Before, between files, before the manifest, before the pointer, in rotation."""
    ends = set()
    for lives in range(12):
        uri = str(tmp_path / f"run-{lives}")
        for step in (10, 20):
            commit_shards(Store(uri), step, tmp_path)
        mortal = Mortal(uri)
        mortal.lives = lives
        try:
            commit_shards(mortal, 30, tmp_path)
            retention.rotate_checkpoints(mortal, num_kept=2)
            ends.add("done")
        except Killed:
            pass
        restored = download.download_newest_checkpoint(Store(uri), tmp_path / f"out-{lives}")
        assert restored is not None
        assert {p.read_text() for p in restored.state.iterdir()} == {str(restored.step)}
        ends.add(str(restored.step))
    assert ends == {"20", "30", "done"}


def commit_shards(run: Store, step: int, tmp_path: Path) -> None:
    folder = tmp_path / f"{Path(run.uri).name}-{step}"
    (folder / download.STATE).mkdir(parents=True)
    for rank in range(2):
        (folder / download.STATE / str(rank)).write_text(str(step))
    manifest.commit_artifact(run, paths.checkpoint(step), folder, {"step": step})
