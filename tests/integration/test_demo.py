"""The demo whole, and the bars it has to clear."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.conftest import dreambooth


@pytest.mark.demo
@pytest.mark.parametrize("model", ["toyworld", "toyworld-flow"])
def test_the_demo_teaches_one_subject_and_keeps_the_rest(tmp_path: Path, model: str) -> None:
    done = dreambooth("demo", "--model", model, "--out", str(tmp_path / "demo"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    fidelity, other_classes = report["subject_fidelity"], report["other_classes"]
    # With class images, and with output preservation.
    for kind in ("after", "output"):
        assert fidelity[kind] - fidelity["before"] >= 0.4, report
        assert other_classes[kind] >= 0.85 * other_classes["before"], report
    assert report["context_accuracy"] >= 0.9, report
    assert report["steps"]["output"] < report["steps"]["after"]
    assert Image.open(tmp_path / "demo" / "contact_sheet.png").width > 600
    assert (tmp_path / "demo" / "bundle" / "model_index.json").is_file()
