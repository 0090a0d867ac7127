"""What is imported is declared in pyproject.toml, by the part that imports it."""

import ast
import re
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# The last is a package that tests install, with a pyproject.toml of its own.
OURS = {"dreambooth_ray", "cluster", "serve", "benchmarks", "k8s", "tests", "dreambooth_sd3"}


def find_imports(folder: str) -> dict[str, Path]:
    """Packages of others that a folder imports, each with a file that does."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {name.partition(".")[0]: path for name in names}
    return {name: p for name, p in found.items() if name not in OURS | sys.stdlib_module_names}


def read_declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return {
        re.split(r"[\[>=<;! ]", requirement)[0].lower()
        for requirements in lists
        for requirement in requirements
    }


RUNTIME = ("deepspeed", "wandb", "mlflow", "safety", "gpu", "plot")


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("dreambooth_ray", RUNTIME),
        ("cluster", ()),
        ("serve", RUNTIME),
        ("benchmarks", ("bench",)),
        ("tests", (*RUNTIME, "bench", "test")),
    ],
)
def test_what_is_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    declared, distributions = read_declared(*extras), packages_distributions()
    for name, path in find_imports(folder).items():
        # Extras may not be installed here: then their own name is all there is.
        providers = {d.lower().replace("_", "-") for d in distributions.get(name, [name])}
        providers.add(f"{name}-skinny")  # mlflow
        assert providers & declared, f"{path} imports {name}, of {providers}"


def read_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in (*RUNTIME, "bench"))]
    return [Requirement(text) for requirements in lists for text in requirements]


@pytest.mark.parametrize("requirement", read_requirements(), ids=lambda r: str(r.name))
def test_every_library_is_bounded_on_both_sides(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert {">=", "<"} <= operators
    with suppress(PackageNotFoundError):
        assert version(requirement.name) in requirement.specifier


def test_whose_private_api_is_used_is_bounded_by_the_next_minor_version() -> None:
    bounds = {r.name: r.specifier for r in read_requirements()}
    compat = (ROOT / "dreambooth_ray" / "compat").glob("[!_]*.py")
    # The system brings libc.
    libraries = {path.stem.partition("_")[0] for path in compat} - {
        "prometheus",
        "lightning",
        "libc",
    }
    for library in {*libraries, "prometheus-client", "pytorch-lightning"}:
        major, minor, *_ = version(library).split(".")
        assert f"{major}.{minor}" in bounds[library]
        assert f"{major}.{int(minor) + 1}" not in bounds[library]
