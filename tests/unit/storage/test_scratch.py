import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage import scratch
from dreambooth_ray.storage.scratch import ScratchFolder, scratch_folder


def make_old(*paths: Path) -> None:
    hour_ago_s = time.time() - 3600
    for path in paths:
        os.utime(path, (hour_ago_s, hour_ago_s))


def test_a_folder_is_there_for_its_block_alone(tmp_path: Path) -> None:
    with scratch_folder("bundle", str(tmp_path)) as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_it_is_removed_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder("bundle", str(tmp_path)):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_without_a_setting_it_is_the_systems_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder("bundle") as folder:
        assert folder.parent == tmp_path


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dreambooth_ray.storage.scratch import ScratchFolder\n"
        "folder = ScratchFolder('restore-1', sys.argv[1]); (folder.path / 'x').write_text('x')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = tmp_path / f"{scratch.PREFIX}restore-1"
    assert (left / "x").exists()
    assert scratch.sweep_scratch(tmp_path) == []  # young: its owner might be about to lock it
    make_old(left)
    with scratch_folder("bundle", str(tmp_path)) as folder:
        assert [p for p in tmp_path.iterdir() if p.is_dir()] == [folder]
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_holds_stays(tmp_path: Path) -> None:
    folder = ScratchFolder("restore-1", str(tmp_path))
    others = tmp_path / "dreambooth-serve-1"
    others.mkdir()
    make_old(folder.path, others)
    assert scratch.find_stale_scratch(tmp_path) == []
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == [others]


@pytest.mark.parametrize("end", ["raise RuntimeError", "del folder; input()"])
def test_what_nobody_removes_goes_with_its_owner(tmp_path: Path, end: str) -> None:
    code = (
        "import sys; from dreambooth_ray.storage.scratch import ScratchFolder\n"
        f"folder = ScratchFolder('checkpoint-1', sys.argv[1]); print('made', flush=True)\n{end}"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=False, input=b"\n", capture_output=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_room_names_setting_and_host(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(ConfigError, match=r"storage\.scratch.*file on "),
        scratch_folder("bundle", str(tmp_path / "file")),
    ):
        pass
