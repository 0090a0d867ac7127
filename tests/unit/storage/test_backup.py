import os
from pathlib import Path

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.backup import CopySummary, copy_storage
from dreambooth_ray.storage.store import Store


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    source, target = Store(str(tmp_path / "runs")), Store(str(tmp_path / "backup"))
    source.write("runs/one/config.yaml", b"one")
    source.write("runs/one/checkpoints/step-1/state.ckpt", b"state")
    return source, target


def date(store: Store, name: str, modified_s: float) -> None:
    os.utime(store.local_path(name), (modified_s, modified_s))


def test_all_files_are_copied_once(stores: tuple[Store, Store]) -> None:
    source, target = stores
    date(source, "runs/one/config.yaml", 1.0)
    date(source, "runs/one/checkpoints/step-1/state.ckpt", 1.0)
    assert copy_storage(source, target) == CopySummary(2, 8, 0, 0)
    assert target.read("runs/one/checkpoints/step-1/state.ckpt") == b"state"
    assert copy_storage(source, target) == CopySummary(0, 0, 2, 0)


def test_a_target_that_takes_no_files_is_named_before_any_is_read(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file is not writable"):
        copy_storage(stores[0], Store(str(tmp_path / "file")))
    nothing, target = Store(str(tmp_path / "nothing")), tmp_path / "target"
    assert copy_storage(nothing, Store(str(target))) == CopySummary(0, 0, 0, 0)
    assert not target.exists()


def test_what_has_changed_is_copied_again(stores: tuple[Store, Store]) -> None:
    source, target = stores
    copy_storage(source, target)
    source.write("runs/one/config.yaml", b"two")  # of the same size
    date(source, "runs/one/config.yaml", 2e10)
    date(source, "runs/one/checkpoints/step-1/state.ckpt", 1.0)
    assert copy_storage(source, target).num_copied == 1
    assert target.read("runs/one/config.yaml") == b"two"


def test_what_is_in_the_copy_alone_stays(stores: tuple[Store, Store]) -> None:
    source, target = stores
    copy_storage(source, target)
    source.remove("runs/one/checkpoints")
    copy_storage(source, target)
    assert target.exists("runs/one/checkpoints/step-1/state.ckpt")


def test_what_goes_meanwhile_is_counted(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = stores
    download = source.download

    def remove_first(name: str, local: Path) -> str:
        if name.endswith("state.ckpt"):
            source.remove_file(name)
        return download(name, local)

    monkeypatch.setattr(source, "download", remove_first)
    assert copy_storage(source, target) == CopySummary(1, 3, 0, 1)
    assert not target.exists("runs/one/checkpoints/step-1/state.ckpt")
