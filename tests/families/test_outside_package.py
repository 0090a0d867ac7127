"""A family in a package outside the tree passes the proof, with no file of ours changed.

The product has the same family: a package's goes before it, so the proof is the package's.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.families.tiny_models import build_tiny

PACKAGE, ROOT = Path(__file__).parent / "outside_package", Path(__file__).parents[2]
PROOF = [
    f"tests/families/test_{name}.py"
    for name in (
        "golden_training", "engine_latents", "resume", "bundles", "published_sizes", "memory",
        "served", "hostile", "hostile_tokenizers",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the package installed as an installer would: modules, and metadata beside them."""
    site = tmp_path_factory.mktemp("site")
    about = tomllib.loads((PACKAGE / "pyproject.toml").read_text())
    project = about["project"]
    for name in about["tool"]["setuptools"]["packages"]:
        shutil.copytree(PACKAGE / name, site / name)
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(head)
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n{name}={target}" for group, e in groups for name, target in e.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "PYTHONDONTWRITEBYTECODE": "1"}


def run(environment: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, text=True, capture_output=True,
        check=False,
    )  # fmt: skip


def test_it_is_known_where_it_is_installed_and_imports_nothing_heavy(
    environment: dict[str, str], tmp_path: Path
) -> None:
    model = build_tiny("sd3", tmp_path / "model")
    code = f"""
import sys
from pathlib import Path
from dreambooth_ray.models.family import find_family
print(find_family(Path({str(model)!r})).functions, "torch" in sys.modules)
"""
    done = run(environment, "-c", code)
    assert done.stdout == "dreambooth_sd3.functions:StableDiffusion3Functions False\n", done.stderr
    without = run({**environment, "PYTHONPATH": str(ROOT)}, "-c", code)
    assert without.stdout.startswith("dreambooth_ray."), without.stderr


def test_it_is_short() -> None:
    files = [*PACKAGE.rglob("*.py"), PACKAGE / "pyproject.toml"]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 250


@pytest.mark.fault
@pytest.mark.timeout(3000)
def test_it_passes_the_proof(environment: dict[str, str]) -> None:
    chosen = ["-k", "sd3 and not without", "-m", "fault or not fault"]
    done = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PROOF, *chosen)
    assert done.returncode == 0, done.stdout[-4000:]
