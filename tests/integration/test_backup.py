"""A storage is lost and comes back, by the commands of k8s/README.md, from SeaweedFS."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from dreambooth_ray.cli import main
from dreambooth_ray.runs import is_finished
from dreambooth_ray.storage import fence, manifest
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.store import Store
from tests.integration.conftest import Run
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

README = Path(__file__).parents[2] / "k8s" / "README.md"


def read_commands() -> list[str]:
    return re.findall("^    (dreambooth copy .+)$", README.read_text(), re.MULTILINE)


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    assert not exit_info.value.code


def test_a_lost_storage_comes_back(
    undisturbed: Run, seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(undisturbed.folder.parents[1], storage)
    before = {file.name: file.size_bytes for file in list_files(Store(str(storage)))}
    run_name = f"runs/{undisturbed.folder.name}"
    backup, back = read_commands()
    places = {"s3://dreambooth-backup": seaweed.make_bucket("backup"), "s3://dreambooth": tmp_path}
    for name, place in places.items():
        backup, back = (text.replace(f"{name}/", f"{place}/") for text in (backup, back))
    with pointed_at(seaweed.environment):
        call(backup, monkeypatch)
        shutil.rmtree(storage)
        call(back, monkeypatch)
    store = Store(str(storage))
    assert {file.name: file.size_bytes for file in list_files(store)} == before
    run = store.sub(run_name)
    assert is_finished(run)
    checkpoints = fence.read_history(run).checkpoints
    assert checkpoints
    assert all(manifest.find_damage(run, c.name) is None for c in checkpoints.values())
