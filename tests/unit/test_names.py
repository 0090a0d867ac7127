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
