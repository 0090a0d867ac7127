"""Cluster-launcher files against Ray's own schema; the Slurm script by the shell's own parser."""

import json
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[3] / "cluster" / "launch"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.yaml")))
def test_launcher_files_are_rays(name: str) -> None:
    config = yaml.safe_load((FOLDER / name).read_text())
    faults = [e.message for e in Draft202012Validator(SCHEMA).iter_errors(config)]
    assert faults == []
    if "available_node_types" in config:
        assert config["head_node_type"] in config["available_node_types"]


def test_a_typo_would_be_found() -> None:
    config = yaml.safe_load((FOLDER / "aws.yaml").read_text())
    config["idle_timeout_minute"] = 5
    assert list(Draft202012Validator(SCHEMA).iter_errors(config))


def test_the_slurm_script_parses() -> None:
    result = subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
