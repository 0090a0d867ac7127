"""Ratios in smoke profile against what they are to be; no time of any machine is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BASELINES = sorted((Path(__file__).parents[2] / "benchmarks" / "baselines").glob("*.json"))


@pytest.mark.fault
@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_ratios_hold(path: Path, tmp_path: Path) -> None:
    baseline, file = json.loads(path.read_text()), tmp_path / "record.json"
    verb = str(Path(sys.executable).parent / "dreambooth")
    command = [verb, "bench", baseline["theme"], "--profile", "smoke", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    # Themes without a peer have no ratio, and still are to come to an end.
    assert record["cases"]
    for peer, wanted in baseline["ratios"].items():
        found = record["ratios"][peer]["median"]
        assert found >= wanted["median"] * (1 - wanted["tolerance"]), (peer, record["cases"])
