"""Real photographs, where there are any: eight DreamBench subjects."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("DREAMBENCH_DIR", Path(__file__).parents[2] / "shared" / "dreambench"))
needed = pytest.mark.skipif(
    not (FOLDER / "dreambench.json").is_file(),
    reason="no DreamBench photographs; set DREAMBENCH_DIR",
)


def subjects() -> dict[str, list[Path]]:
    """Photographs of each subject, by its name."""
    folders = sorted(p for p in FOLDER.iterdir() if p.is_dir()) if FOLDER.is_dir() else []
    return {f.name: sorted(f.glob("*.jpg")) for f in folders}
