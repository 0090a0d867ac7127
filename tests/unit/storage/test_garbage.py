import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.remote_images import upload_photographs
from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.garbage import Garbage, find_garbage, remove_garbage
from dreambooth_ray.storage.store import Store

HOUR_S = 3600.0
NONCE = "0123456789ab"


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "storage"))


def plant_run(storage: Store, run_id: str, prior_set: str, photographs: str) -> Store:
    run = storage.sub(paths.run(run_id))
    subject = {"photos": f"{storage.uri}/photographs/{photographs}", "class_noun": "robot"}
    run.write(paths.CONFIG, dump_config(Config.model_validate({"subject": subject})).encode())
    run.write(paths.PRIOR_USE, json.dumps({"set": prior_set}).encode())
    return run


def plant_everything(storage: Store, folder: Path) -> list[str]:
    """One of all that is used, and one of all that is not; returns the names of these."""
    (folder / "in").mkdir()
    (folder / "in" / "file").write_text("content")
    run = plant_run(storage, "mine", "used", "used")
    for step in (5, 10):
        manifest.commit_artifact(run, paths.checkpoint(step), folder / "in", {})
    run.write(f"{paths.checkpoint(10)}-{NONCE}/state.ckpt", b"a second upload of a step")
    run.write(f"{paths.checkpoint(15)}-{NONCE}/state.ckpt", b"half")
    for digest in ("used", "unused"):
        manifest.commit_artifact(storage, f"photographs/{digest}", folder / "in", {})
        prior_set = storage.sub(paths.prior_set(digest))
        prior_set.write(paths.PRIOR_SPEC, b"{}")
        manifest.commit_artifact(prior_set, paths.prior_chunk_artifact(0), folder / "in", {})
        prior_set.write(f"{paths.prior_chunk_artifact(1)}-{NONCE}/000001.png", b"half")
    storage.write(f"photographs/half-{NONCE}/photo.png", b"half")
    manifest.commit_artifact(storage, paths.model("whole"), folder / "in", {})
    storage.write(f"{paths.model('half')}-{NONCE}/unet/config.json", b"half")
    return sorted(
        [
            f"runs/mine/{paths.checkpoint(10)}-{NONCE}",
            f"runs/mine/{paths.checkpoint(15)}-{NONCE}",
            "priors/unused",
            f"priors/used/{paths.prior_chunk_artifact(1)}-{NONCE}",
            "photographs/unused",
            f"photographs/half-{NONCE}",
            f"models/half-{NONCE}",
        ]
    )


def find_names(storage: Store, older_than_s: float = 0.0) -> list[str]:
    now_s = time.time() + 1
    return [item.name for item in find_garbage(storage, now_s - older_than_s, now_s)]


def test_what_nothing_names_is_found_and_removed(storage: Store, tmp_path: Path) -> None:
    garbage = plant_everything(storage, tmp_path)
    items = find_garbage(storage, time.time() + 1, time.time())
    assert [item.name for item in items] == garbage
    assert all(item.size_bytes for item in items)
    assert all(remove_garbage(storage, item, time.time()) for item in items)
    assert find_names(storage) == []
    run = storage.sub("runs/mine")
    assert manifest.find_damage(run, paths.checkpoint(5)) is None
    assert manifest.find_damage(run, paths.checkpoint(10)) is None
    assert manifest.find_damage(storage, "photographs/used") is None
    assert manifest.find_damage(storage, paths.model("whole")) is None
    assert manifest.find_damage(storage.sub("priors/used"), paths.prior_chunk_artifact(0)) is None
    left = {file.name.split("/")[1] for file in list_files(storage) if "runs/" not in file.name}
    assert not {"unused", "unused.json", f"half-{NONCE}"} & left


def test_what_is_young_stays(storage: Store, tmp_path: Path) -> None:
    garbage = plant_everything(storage, tmp_path)
    assert find_names(storage, older_than_s=HOUR_S) == []
    old_s = time.time() - 2 * HOUR_S
    for path in storage.local_path("priors/unused").rglob("*"):
        os.utime(path, (old_s, old_s))
    assert find_names(storage, older_than_s=HOUR_S) == ["priors/unused"]
    assert find_names(storage) == garbage


def test_what_a_lease_holds_stays_until_it_has_long_been_silent(
    storage: Store, tmp_path: Path
) -> None:
    garbage = plant_everything(storage, tmp_path)
    run = storage.sub("runs/mine")
    run.write("leases/000003.json", json.dumps({"released": False}).encode())
    held = [n for n in garbage if n.startswith("runs/") or n.startswith("priors/used")]
    assert find_names(storage) == [n for n in garbage if n not in held]
    run.write("leases/000003.json", json.dumps({"released": True}).encode())
    assert find_names(storage) == garbage
    run.write("leases/000004.json", b"cut off")
    assert find_names(storage) == [n for n in garbage if n not in held]
    old_s = time.time() - 2 * HOUR_S
    os.utime(storage.local_path("runs/mine/leases/000004.json"), (old_s, old_s))
    assert find_names(storage) == garbage


def test_what_a_run_has_come_to_use_meanwhile_stays(storage: Store, tmp_path: Path) -> None:
    plant_everything(storage, tmp_path)
    items = find_garbage(storage, time.time() + 1, time.time())
    plant_run(storage, "new", "unused", "unused")
    kept = {item.name for item in items if not remove_garbage(storage, item, time.time())}
    assert kept == {"priors/unused", "photographs/unused"}


def test_photographs_that_somebody_is_about_to_use_stay(storage: Store, tmp_path: Path) -> None:
    """As they are uploaded again, an hour before their run is opened."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "one.png")
    name = upload_photographs(photos, storage).removeprefix(f"{storage.uri}/")
    old_s = time.time() - 2 * HOUR_S
    for path in storage.local_path("photographs").rglob("*"):
        os.utime(path, (old_s, old_s))
    now_s = time.time()
    (item,) = find_garbage(storage, now_s - HOUR_S, now_s)
    assert item.name == name
    assert upload_photographs(photos, storage) == f"{storage.uri}/{name}"
    assert find_names(storage, older_than_s=HOUR_S) == []
    assert not remove_garbage(storage, item, time.time())
    assert manifest.find_damage(storage, name) is None


def test_runs_and_pointers_that_can_not_be_read_are_left_alone(
    storage: Store, tmp_path: Path
) -> None:
    plant_everything(storage, tmp_path)
    run = storage.sub("runs/mine")
    run.write(f"{paths.checkpoint(10)}.json", b"{")
    assert f"runs/mine/{paths.checkpoint(10)}-{NONCE}" not in find_names(storage)
    run.write(paths.CONFIG, b"written: by another version")
    names = find_names(storage)
    assert not [name for name in names if name.startswith("runs/")]


@pytest.mark.parametrize("name", [paths.CONFIG, paths.PRIOR_USE])
def test_what_a_run_that_can_not_be_read_may_use_stays(
    storage: Store, tmp_path: Path, name: str
) -> None:
    plant_everything(storage, tmp_path)
    items = find_garbage(storage, time.time() + 1, time.time())
    storage.sub("runs/mine").write(name, b"written: by another version \xff")
    removed = [item.name for item in items if remove_garbage(storage, item, time.time())]
    assert removed == [item for item in removed if item.endswith(NONCE)]
    messages: list[str] = []
    now_s = time.time() + 1
    left = [item.name for item in find_garbage(storage, now_s, now_s, messages.append)]
    assert not [found for found in left if found.startswith(("priors/", "photographs/"))]
    assert "run mine uses" in messages[0] and name in messages[0]
    assert manifest.find_damage(storage, "photographs/used") is None
    assert manifest.find_damage(storage, "photographs/unused") is None


def test_what_no_run_uses_goes_though_one_can_not_be_read(storage: Store) -> None:
    """Images whose URL has expired and ended jobs: others find them, and this removes them."""
    storage.write("runs/mine/config.yaml", b"of: another version")
    storage.write("serve/images/old.png", b"image")
    item = Garbage("serve/images/old.png", "expired", 5, 0.0)
    assert remove_garbage(storage, item, time.time())
    assert not storage.exists("serve/images/old.png")


def test_an_upload_that_was_finished_meanwhile_stays(storage: Store, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("content")
    folder = f"{paths.model('one')}-{NONCE}"
    entries = manifest.upload_files(storage, folder, tmp_path / "in")
    (item,) = find_garbage(storage, time.time() + 1, time.time())
    manifest.commit_uploaded(storage, paths.model("one"), folder, entries, {})
    assert not remove_garbage(storage, item, time.time())
    assert manifest.find_damage(storage, paths.model("one")) is None


def test_a_file_among_the_runs_is_passed_over(storage: Store, tmp_path: Path) -> None:
    garbage = plant_everything(storage, tmp_path)
    storage.write("runs/.DS_Store", b"of a file manager")
    assert find_names(storage) == garbage


def test_a_storage_that_refuses_a_run_ends_the_search(
    storage: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_everything(storage, tmp_path)
    read = Store.read

    def refuse_config(store: Store, file_name: str, patience_s: float = 0.0) -> bytes:
        if file_name == paths.CONFIG:
            raise StorageError("access is denied")
        return read(store, file_name)

    monkeypatch.setattr(Store, "read", refuse_config)
    with pytest.raises(StorageError, match="denied"):
        find_names(storage)
