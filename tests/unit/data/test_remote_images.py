import uuid
from pathlib import Path

import pytest

from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.remote_images import fetch_photographs_folder, upload_photographs
from dreambooth_ray.data.subject import read_subject_photographs
from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.store import Store


@pytest.fixture
def storage() -> Store:
    return Store(f"memory://album/{uuid.uuid4().hex}")


def test_uploaded_photographs_come_back_as_they_were(photos: Path, storage: Store) -> None:
    uri = upload_photographs(photos, storage)
    assert upload_photographs(photos, storage) == uri
    downloaded = read_subject_photographs(
        fetch_photographs_folder(uri), "x", ShapeRule.make_square_rule(32)
    )
    originals = read_subject_photographs(photos, "x", ShapeRule.make_square_rule(32))
    assert [p.image.tobytes() for p in downloaded] == [p.image.tobytes() for p in originals]
    assert [p.captions for p in downloaded] == [p.captions for p in originals]


def test_one_byte_more_is_another_album(photos: Path, storage: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in photos.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    first = sorted(other.glob("*.png"))[0]
    first.with_suffix(".txt").write_text("a sks robot with a hat")
    assert upload_photographs(other, storage) != upload_photographs(photos, storage)


def test_a_plain_remote_folder_is_read(photos: Path, storage: Store) -> None:
    for path in photos.iterdir():
        storage.upload(path, f"plain/{path.name}")
    local = fetch_photographs_folder(f"{storage.uri}/plain")
    assert sorted(p.name for p in local.iterdir()) == sorted(p.name for p in photos.iterdir())


def test_damage_is_said(photos: Path, storage: Store) -> None:
    uri = upload_photographs(photos, storage)
    name = next(f for f in storage.names("photographs") if not f.endswith(".json"))
    image = next(f for f in storage.names(f"photographs/{name}") if f.endswith(".png"))
    storage.write(f"photographs/{name}/{image}", b"other")
    with pytest.raises(DataError, match="upload it again"):
        fetch_photographs_folder(uri)


def test_a_folder_right_below_a_bucket_is_read(photos: Path) -> None:
    bucket = Store(f"memory://{uuid.uuid4().hex}")
    for path in photos.iterdir():
        bucket.upload(path, path.name)
    local = fetch_photographs_folder(bucket.uri)
    assert sorted(p.name for p in local.iterdir()) == sorted(p.name for p in photos.iterdir())


def test_folders_beside_remote_photographs_are_left_alone(photos: Path, storage: Store) -> None:
    for path in photos.iterdir():
        storage.upload(path, f"dog/{path.name}")
    storage.write("dog/old/0.png", b"no photograph")
    local = fetch_photographs_folder(f"{storage.uri}/dog")
    assert sorted(p.name for p in local.iterdir()) == sorted(p.name for p in photos.iterdir())


def test_a_remote_folder_without_files_is_named(storage: Store) -> None:
    with pytest.raises(DataError, match=f"subject.photos='{storage.uri}/nothing'"):
        fetch_photographs_folder(f"{storage.uri}/nothing")
