"""The README's own words, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def readme_block(language: str) -> str:
    """The README's only block of a language."""
    (block,) = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    return str(block)


def test_the_readmes_commands_run_in_order(tmp_path: Path) -> None:
    commands = readme_block("console").splitlines()
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
    python = [sys.executable, "-c", readme_block("python")]
    subprocess.run(python, cwd=tmp_path, check=True, timeout=400)
    assert (tmp_path / "beach.png").stat().st_size


def test_the_contact_sheet_is_a_image_of_the_demo() -> None:
    width, height = Image.open(ROOT / "contact_sheet.png").size
    assert width > 600
    assert height > 600
