"""One class of one name, one module of one name: what is found is what is meant."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("dreambooth_ray", "cluster", "serve", "benchmarks")
# A file of cli/ is named after its verb, also where a module does what the verb asks for; a module
# of compat/ after the library.
NAMED_AFTER_OTHERS = ("dreambooth_ray/cli/", "dreambooth_ray/compat/")


def find_twice(names: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in names.items() if len(places) > 1}


def test_no_module_and_no_class_has_anothers_name() -> None:
    modules, classes = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        if not path.stem.startswith("__") and not name.startswith(NAMED_AFTER_OTHERS):
            modules[path.stem].append(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name)
    assert len(modules) > 150
    assert len(classes) > 150
    assert find_twice(modules) == {}
    assert find_twice(classes) == {}


def list_methods(node: ast.ClassDef) -> dict[str, str]:
    """Docstrings by name."""
    return {
        child.name: ast.get_docstring(child) or ""
        for child in node.body
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_what_points_to_its_base_class_overrides_something() -> None:
    """A method whose base has another name for it by now is called by nobody."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def inherited(name: str) -> set[str]:
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
        known = [base for base in bases if base in classes]
        return set().union(
            *(list_methods(classes[base]).keys() | inherited(base) for base in known)
        )

    pointing = [
        (name, method)
        for name, node in classes.items()
        for method, docstring in list_methods(node).items()
        if "See the base class" in docstring
    ]
    assert len(pointing) >= 6
    assert [place for place in pointing if place[1] not in inherited(place[0])] == []
