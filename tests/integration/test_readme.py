"""The README's own words, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def readme_commands() -> list[str]:
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return block.group(1).splitlines()


def test_the_readmes_commands_run_in_order(tmp_path: Path) -> None:
    commands = readme_commands()
    assert len(commands) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PATH": path},
            text=True, capture_output=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed.append(done.stdout)
    run = tmp_path / "out" / "runs" / "mine"
    assert printed[1].splitlines() == printed[2].splitlines() == [str(run)]
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 5
    scores = json.loads(printed[4])
    assert len(scores["out/images"]["pictures"]) == 5


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_local_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_contact_sheet_is_a_image_of_the_demo() -> None:
    width, height = Image.open(ROOT / "contact_sheet.png").size
    assert width > 600
    assert height > 600
