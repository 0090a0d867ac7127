"""Models in storage: what comes from a bundle is what its manifest says."""

from pathlib import Path

import pytest

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.remote_model_files import download_model
from dreambooth_ray.models.store_files import BundleFiles, open_store_model
from dreambooth_ray.storage.manifest import upload_folder_with_manifest
from dreambooth_ray.storage.store import Store

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def bundle(tmp_path: Path, toy_model: Path) -> Path:
    store = Store(str(tmp_path)).sub("runs/dog")
    upload_folder_with_manifest(store, "bundle", toy_model, {"kind": "bundle"})
    return tmp_path / "runs/dog/bundle"


def test_a_bundle_is_downloaded_whole(bundle: Path, toy_model: Path, tmp_path: Path) -> None:
    files = open_store_model(bundle.as_uri())
    assert isinstance(files, BundleFiles)
    download_model(files, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (toy_model / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", [WEIGHTS, "model_index.json"])
def test_a_damaged_file_of_a_bundle_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} differs from its manifest"):
        download_model(open_store_model(bundle.as_uri()), tmp_path / "out")
    assert not list((tmp_path / "out").rglob(f"{Path(name).name}*"))
