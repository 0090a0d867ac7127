"""Ratios in smoke profile against what they are to be; no time of any machine is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BASELINES = sorted((Path(__file__).parents[2] / "benchmarks" / "baselines").glob("*.json"))


@pytest.mark.fault
@pytest.mark.alone
@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_ratios_hold(path: Path, tmp_path: Path) -> None:
    baseline, file = json.loads(path.read_text()), tmp_path / "record.json"
    verb = str(Path(sys.executable).parent / "dreambooth")
    command = [verb, "bench", baseline["theme"], "--profile", "smoke", "--json", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert result.returncode == 0, result.stderr
    record = json.loads(file.read_text())
    # Themes without a peer have no ratio, and still are to come to an end.
    assert record["cases"]
    for peer, bar in baseline["ratios"].items():
        ratio = record["ratios"][peer]["median"]
        assert ratio >= bar["median"] * (1 - bar["tolerance"]), (peer, record["cases"])
