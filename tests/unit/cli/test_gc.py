from pathlib import Path

import pytest

from dreambooth_ray.cli.gc import collect_garbage, collect_scratch, parse_age
from dreambooth_ray.errors import ConfigError
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
    collect_garbage(store.uri, delete=False, older_than="24h")
    assert capsys.readouterr().out.startswith("0 things")
    collect_garbage(store.uri, delete=False, older_than="0s", prefix="priors/")
    assert capsys.readouterr().out.startswith("0 things")
    collect_garbage(store.uri, delete=False, older_than="0s")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("unused\t")
    assert first.endswith(NAME)
    assert "remove with --delete" in last
    assert store.names(NAME) == ["photo.png"]
    collect_garbage(store.uri, delete=True, older_than="0s")
    assert f"half an upload\t{NAME}" in capsys.readouterr().out
    assert store.names(NAME) == []


def test_scratch_of_processes_that_died_goes_and_what_is_held_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = ScratchFolder("held", str(tmp_path))
    stale = tmp_path / held.path.name.replace("held", "stale")
    stale.mkdir()
    try:
        collect_scratch(str(tmp_path), delete=False, older_than="1h")
        assert capsys.readouterr().out == ""
        collect_scratch(str(tmp_path), delete=False, older_than="0s")
        assert str(stale) in capsys.readouterr().out
        assert stale.is_dir()
        collect_scratch(str(tmp_path), delete=True, older_than="0s")
        assert not stale.exists()
        assert held.path.is_dir()
    finally:
        held.remove()
