"""No function is too long to be seen at once, and no file too long to be read in one go.

Exempt are generated files alone: docs/reference (by docs/make_reference.py), and what is no text
that somebody writes: weights, images, and JSON (records of benchmarks, schemas, a dashboard).
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("dreambooth_ray", "cluster", "serve", "benchmarks", "docs", "k8s", "tests")
WRITTEN = {".py", ".md", ".yaml", ".toml", ".js", ".css", ".html", ".j2", ".sh"}
GENERATED = ("docs/reference/",)
MAX_FUNCTION_LINES, MAX_FILE_LINES = 55, 300


def written_files() -> dict[str, str]:
    """Text by path."""
    below = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    paths = [*(path for path in ROOT.iterdir() if path.is_file()), *below]
    names = {path.relative_to(ROOT).as_posix(): path for path in paths if path.suffix in WRITTEN}
    return {n: path.read_text() for n, path in names.items() if not n.startswith(GENERATED)}


def long_functions(text: str) -> list[str]:
    """Name and lines of each function that is too long, decorators not counted."""
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def test_no_function_is_too_long() -> None:
    found = [
        f"{name}: {function}"
        for name, text in written_files().items()
        if name.endswith(".py")
        for function in long_functions(text)
    ]
    assert found == [], f"over {MAX_FUNCTION_LINES} lines: split these"


def test_no_file_is_too_long() -> None:
    lengths = {name: text.count("\n") for name, text in written_files().items()}
    assert {"README.md", "pyproject.toml", "docs/make_reference.py"} <= set(lengths)
    found = {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}
    assert found == {}, f"over {MAX_FILE_LINES} lines: split these"


def test_a_long_function_is_found() -> None:
    body = "    pass\n"
    assert long_functions("def short():\n" + body * (MAX_FUNCTION_LINES - 1)) == []
    assert long_functions("async def long():\n" + body * MAX_FUNCTION_LINES) == ["long: 56 lines"]
