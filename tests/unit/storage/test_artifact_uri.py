import uuid
from pathlib import Path

from dreambooth_ray.storage.artifact_uri import find_artifact
from dreambooth_ray.storage.manifest import commit_artifact
from dreambooth_ray.storage.store import Store


def test_an_artifact_is_found_and_a_plain_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    store = Store(f"memory://{uuid.uuid4().hex}")
    commit_artifact(store, "photographs/abc", tmp_path, {})
    store.upload(tmp_path / "photo.png", "plain/folder/photo.png")
    found = find_artifact(f"{store.uri}/photographs/abc")
    assert found is not None
    assert (found[0].uri, found[1]) == (store.uri, "photographs/abc")
    assert find_artifact(f"{store.uri}/plain/folder") is None


def test_a_folder_right_below_a_bucket_is_looked_for_nowhere_else() -> None:
    assert find_artifact("memory://bucket") is None
    assert find_artifact("s3://bucket/folder") is None
