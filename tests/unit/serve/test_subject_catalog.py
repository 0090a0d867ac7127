import asyncio
import json
from pathlib import Path

import pytest

from dreambooth_ray.config.serving import ServeConfig
from serve.api_errors import APIError
from serve.subject_catalog import SubjectCatalog, parse_subject


def _commit(
    storage: Path, run_id: str, files: tuple[str, ...] = ("unet/a.safetensors",), **about: object
) -> None:
    folder = storage / "runs" / run_id / "bundle"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "about": {"kind": "bundle", "prompt": "a sks dog", **about},
        "files": [{"name": n, "size_bytes": 1, "sha256": "0" * 64} for n in files],
    }
    (folder / "manifest.json").write_text(json.dumps(content))


def _catalog(tmp_path: Path) -> SubjectCatalog:
    return SubjectCatalog(
        ServeConfig.model_validate({"storage": {"uri": str(tmp_path)}}), lambda: next(_time)
    )


_time = iter(range(0, 10**9, 10))


def _allow_all(_: str) -> bool:
    return True


def test_a_subject_counts_from_its_commit_to_its_removal(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        with pytest.raises(APIError) as refused:
            await catalog.resolve("dog", _allow_all)
        assert refused.value.status == 404
        _commit(tmp_path, "dog")
        dog = await catalog.resolve("dog", _allow_all)
        assert dog.prompt == "a sks dog"
        assert (await catalog.resolve(dog.id, _allow_all)) == dog
        assert [a.id for a in catalog.list_answers(_allow_all)] == ["toyworld", "dog"]
        (tmp_path / "runs/dog/bundle/manifest.json").unlink()
        await catalog.refresh()
        with pytest.raises(APIError):
            await catalog.resolve("dog", _allow_all)

    asyncio.run(story())


def test_versions_are_newest_first(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        _commit(tmp_path, "r1", subject="dog", created_at=5)
        _commit(tmp_path, "r2", subject="dog", created_at=9)
        _commit(tmp_path, "r3", subject="dog", created_at=7)
        newest = await catalog.resolve("dog", _allow_all)
        assert newest.artifact.folder == "runs/r2/bundle"
        folders = [s.artifact.folder for s in catalog.list_versions("dog")]
        assert folders == ["runs/r2/bundle", "runs/r3/bundle", "runs/r1/bundle"]
        old = catalog.list_versions("dog")[2].id
        assert (await catalog.resolve(old, _allow_all)).artifact.folder == "runs/r1/bundle"

    asyncio.run(story())


def test_other_peoples_subjects_answer_as_if_they_were_not_there(tmp_path: Path) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        _commit(tmp_path, "dog")
        with pytest.raises(APIError) as not_mine:
            await catalog.resolve("dog", lambda name: name != "dog")
        with pytest.raises(APIError) as not_there:
            await catalog.resolve("cat", _allow_all)
        assert not_mine.value.message.replace("dog", "cat") == not_there.value.message
        assert [a.id for a in catalog.list_answers(lambda name: name != "dog")] == ["toyworld"]

    asyncio.run(story())


@pytest.mark.parametrize(
    "name",
    [
        "unet/weights.bin",
        "pytorch_model.pt",
        "../../etc/passwd",
        "a/../b.json",
        "/etc/x.json",
        "unet/x.pkl",
    ],
)
def test_a_bundle_with_a_pickle_or_a_way_out_is_refused(tmp_path: Path, name: str) -> None:
    async def story() -> None:
        catalog = _catalog(tmp_path)
        _commit(tmp_path, "dog", ("unet/a.safetensors", name))
        with pytest.raises(APIError) as refused:
            await catalog.resolve("dog", _allow_all)
        assert (refused.value.status, refused.value.code) == (422, "model_unusable")

    asyncio.run(story())


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"about": 3, "files": []}', b'{"about": {"kind": "x"}, "files": []}',
     b'{"about": {"kind": "bundle", "subject": "../x"}, "files": []}', b"[" * 10**5],
)  # fmt: skip
def test_what_is_no_manifest_is_no_subject(manifest: bytes) -> None:
    assert parse_subject("run", manifest, 0.0) is None
