"""A run that goes on with changes: what is accepted shows in its metrics, nothing else stays."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.conftest import Run, dreambooth, train

SETTINGS = (
    "train.steps=4", "train.lr_schedule=cosine", "prior.count=4", "prior.num_inference_steps=2",
    "sample.every=0", "cluster.workers=1", "prior.actors=1",
)  # fmt: skip


@pytest.mark.fault
def test_a_change_is_taken_up_or_refused(tmp_path: Path, photos: Path, storage: str) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    run = train(tmp_path, folder, storage, *SETTINGS)

    def resume(*arguments: str) -> str:
        """What it said, and "" where it went well."""
        stored = (run.folder / "config.yaml").read_text()
        process = dreambooth("resume", str(run.folder), *arguments, cwd=tmp_path)
        if process.returncode == 0:
            return ""
        assert (run.folder / "config.yaml").read_text() == stored
        assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
        return process.stderr

    assert "at step 4 already" in resume("train.steps=3", "--force")
    assert "train.steps was 4 and is 8" in resume("train.steps=8")
    assert "raise train.steps" in resume("train.lr=1e-3", "--force")
    assert resume("train.steps=8", "train.lr=1e-3", "--force") == ""
    rates = [record["lr"] for record in Run(run.folder).metrics]
    assert len(rates) == 8
    assert rates[4] == pytest.approx(5e-4) and rates[:2] == pytest.approx(
        [7e-5, 5.975e-5], rel=1e-3
    )
    assert len((run.folder / "bundle" / "card.md").read_text()) > 100
    for path in folder.iterdir():
        path.unlink()
    Image.new("RGB", (80, 80), "red").save(folder / "00.png")
    assert "subject.photos: of 3 photographs 3 are gone" in resume()
