from pathlib import Path

import pytest

from dreambooth_ray.cli.gc import collect_garbage, collect_scratch, gc, parse_age
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue import queue_garbage
from dreambooth_ray.queue.work_queue import WorkQueue
from dreambooth_ray.queue.work_records import WorkRecord
from dreambooth_ray.storage.scratch import ScratchFolder
from dreambooth_ray.storage.store import Store

NAME = "photographs/half-0123456789ab"


@pytest.mark.parametrize(("text", "age_s"), [("24h", 86_400), ("90m", 5_400), ("1.5d", 129_600)])
def test_an_age_is_a_number_and_a_unit(text: str, age_s: float) -> None:
    assert parse_age(text) == age_s


@pytest.mark.parametrize("text", ["24", "h", "-1h", "1 week", ""])
def test_another_age_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--older-than"):
        parse_age(text)


def test_garbage_is_shown_first_and_removed_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    store.write(f"{NAME}/photo.png", b"half")
    assert collect_garbage(store.uri, delete=False, older_than="24h") == (0, 0)
    assert collect_garbage(store.uri, delete=False, older_than="0s", prefix="priors/") == (0, 0)
    assert capsys.readouterr().out == ""
    assert collect_garbage(store.uri, delete=False, older_than="0s") == (1, 4)
    line = capsys.readouterr().out.rstrip()
    assert line.startswith("unused\t")
    assert line.endswith(NAME)
    assert store.names(NAME) == ["photo.png"]
    collect_garbage(store.uri, delete=True, older_than="0s")
    assert f"half an upload\t{NAME}" in capsys.readouterr().out
    assert store.names(NAME) == []


def test_what_ended_in_a_queue_is_shown_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = WorkQueue(Store(str(tmp_path)).sub("queue/fleet/group"))
    for name in ("over", "waits"):
        queue.add(WorkRecord(id=name, owner=name, payload="", created_ms=1))
    queue.cancel("over")
    assert collect_garbage(str(tmp_path), delete=False, older_than="0s") == (0, 0)
    monkeypatch.setattr(queue_garbage, "ENDED_S", -1.0)
    assert collect_garbage(str(tmp_path), delete=False, older_than="0s")[0] == 1
    assert queue.has_work("over")
    assert collect_garbage(str(tmp_path), delete=True, older_than="0s")[0] == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("removed") and line.endswith("a week ago\tqueue/fleet/group")
    assert [queue.has_work(name) for name in ("over", "waits")] == [False, True]


def test_scratch_of_processes_that_died_goes_and_what_is_held_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = ScratchFolder("held", str(tmp_path))
    stale = tmp_path / held.path.name.replace("held", "stale")
    stale.mkdir()
    (stale / "weights").write_bytes(bytes(2_000_000))
    try:
        assert collect_scratch(str(tmp_path), delete=False, older_than="1h") == (0, 0)
        assert capsys.readouterr().out == ""
        assert collect_scratch(str(tmp_path), delete=False, older_than="0s") == (1, 2_000_000)
        line = capsys.readouterr().out
        assert line.startswith("unused\t2.0 MB")
        assert str(stale) in line
        assert stale.is_dir()
        assert collect_scratch(str(tmp_path), delete=True, older_than="0s") == (1, 2_000_000)
        assert not stale.exists()
        assert held.path.is_dir()
    finally:
        held.remove()


def test_the_sum_counts_a_storage_and_a_hosts_scratch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, scratch = Store(str(tmp_path / "out")), tmp_path / "scratch"
    store.write(f"{NAME}/photo.png", bytes(1_000_000))
    stale = scratch / "dreambooth-scratch-stale"
    stale.mkdir(parents=True)
    (stale / "weights").write_bytes(bytes(2_000_000))
    gc([store.uri], older_than="0s", scratch=str(scratch))
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 things, 3.0 MB could go")


def test_a_storage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no runs"):
        gc([str(tmp_path / "nowhere")], scratch=str(tmp_path))
