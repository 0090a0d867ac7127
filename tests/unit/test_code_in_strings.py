"""Programs that tests and docs hold as text import what is there: mypy does not read them."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("dreambooth_ray", "cluster", "serve", "benchmarks", "tests")
IMPORT = re.compile(
    rf"^ *from ((?:{'|'.join(PACKAGES)})[\w.]*) import (\([^)]*\)|[\w, ]+)$", re.MULTILINE
)


@cache
def list_names(module: str) -> set[str]:
    """What a module, or a package, may give; nothing if there is none."""
    folder = ROOT / module.replace(".", "/")
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    if not path.exists():
        return set()
    names = {child.name.removesuffix(".py") for child in folder.glob("*")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.alias):
            names.add(node.id if isinstance(node, ast.Name) else (node.asname or node.name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # what is imported when it is asked for
    return names


def list_texts() -> list[tuple[str, str]]:
    texts = [(str(path), path.read_text()) for path in sorted((ROOT / "docs").rglob("*.md"))]
    texts.append(("README.md", (ROOT / "README.md").read_text()))
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append((f"{path}:{node.lineno}", node.value))
    return texts


def test_code_in_strings_imports_what_is_there() -> None:
    missing, num_imports = [], 0
    for place, text in list_texts():
        for module, names in IMPORT.findall(text.replace("; ", "\n")):
            for name in re.findall(r"(\w+)(?: as \w+)?", names):
                num_imports += 1
                if name not in list_names(module):
                    missing.append((place, module, name))
    assert num_imports > 40
    assert missing == []
