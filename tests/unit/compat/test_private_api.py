"""Private API of other libraries is used in compat/ alone, and each name there has its test."""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.unit.compat.private_api import check_parameters, find_private

ROOT = Path(__file__).parents[3]
COMPAT = ROOT / "dreambooth_ray" / "compat"
OWN = ("dreambooth_ray", "cluster", "serve", "benchmarks", "docs")
# "file: name": why it is no use of a library's private API.
EXEMPT: dict[str, str] = {}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


class _Scan(ast.NodeVisitor):
    """Private names that a file reaches into: of modules, and of objects that are not its own."""

    def __init__(self, tree: ast.Module) -> None:
        self.names: list[tuple[int, str]] = []
        # What this file defines or sets somewhere is its own, on whichever object it stands.
        self._own = set[str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                self._own |= {node.attr} if _is_self(node.value) else set()
        self.visit(tree)

    def _add(self, node: ast.AST, name: str) -> None:
        self.names.append((getattr(node, "lineno", 0), name))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if any(is_private(part) for part in alias.name.split(".")):
                self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if any(is_private(part) for part in module.split(".")):
            for alias in node.names:
                self._add(node, f"{module}.{alias.name}")
        elif not module.startswith(OWN):
            for alias in node.names:
                if is_private(alias.name):
                    self._add(node, f"{module}.{alias.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr not in self._own and (
            is_private(node.attr) or node.attr == "__compatible_ops__"
        ):
            self._add(node, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Names as text, for getattr and the like, and private arguments."""
        function = ast.unparse(node.func).rpartition(".")[2]
        if function in ("getattr", "setattr", "hasattr", "delattr", "object", "patch"):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    name = argument.value.rpartition(".")[2]
                    if is_private(name) and name not in self._own:
                        self._add(node, name)
        for keyword in node.keywords:
            if keyword.arg and is_private(keyword.arg):
                self._add(node, keyword.arg)
        self.generic_visit(node)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def product_files() -> Iterator[Path]:
    for package in OWN:
        yield from sorted((ROOT / package).rglob("*.py"))


def scan(path: Path) -> list[tuple[int, str]]:
    return _Scan(ast.parse(path.read_text())).names


def test_no_private_api_is_used_outside_compat() -> None:
    uses = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in product_files()
        if COMPAT not in path.parents
        for line, name in scan(path)
        if f"{path.relative_to(ROOT)}: {name}" not in EXEMPT
    ]
    assert uses == [], "put these into dreambooth_ray/compat, with a test, or use public API"


def overriding_classes() -> Iterator[tuple[str, str]]:
    """Module and name of every class outside compat that has private methods and a base."""
    for path in product_files():
        if COMPAT in path.parents or ROOT / "docs" in path.parents:
            continue
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.ClassDef) and node.bases):
                continue
            if any(isinstance(n, ast.FunctionDef) and is_private(n.name) for n in node.body):
                yield module, node.name


def test_no_private_method_of_a_library_is_overridden_outside_compat() -> None:
    overrides = []
    for module, name in overriding_classes():
        cls = getattr(import_module(module), name)
        for base in cls.__mro__[1:]:
            if base is object or base.__module__.startswith(OWN):
                continue
            overrides += [
                f"{module}.{name}.{method}"
                for method, value in vars(cls).items()
                if inspect.isfunction(value)
                # DeepSpeed keeps an __init__ under another name.
                and value.__name__ == method
                and is_private(method)
                and method in vars(base)
            ]
    assert overrides == []


@pytest.mark.parametrize("path", sorted(COMPAT.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_private_name_of_compat_has_its_test(path: Path) -> None:
    test = Path(__file__).parent / f"test_{path.name}"
    text = test.read_text()
    missing = {name for _, name in scan(path) if name.rpartition(".")[2] not in text}
    assert missing == set(), f"{test.relative_to(ROOT)} does not look them up"


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private",
        "from torch._subclasses.fake_tensor import FakeTensorMode",
        "from torch.x import _load",
        "torch._foreach_lerp_(a, b, 1)",
        "self._wrapped._enable_peft_forward_hooks()",
        "class A(Base):\n    def f(self):\n        return self._init_distributed()",
        "deepspeed.ops.__compatible_ops__['x'] = False",
        "getattr(tensor, '_base')",
        "mock.patch.object(node, '_start', None)",
        "part.register_to_config(_name_or_path='x')",
    ],
)
def test_a_private_use_is_found(code: str) -> None:
    assert _Scan(ast.parse(code)).names


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n def f(self, o):\n  self._a = o._a",
        "from dreambooth_ray.version import __version__",
        "type(error).__name__",
    ],
)
def test_what_is_its_own_or_pythons_is_left_alone(code: str) -> None:
    assert _Scan(ast.parse(code)).names == []


def test_a_name_that_moved_is_said_with_library_version_and_user() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"pytest \d.*no Moved.*compat/peft\.py"):
        find_private("pytest", "pytest", "Moved", user="peft.py")
    with pytest.raises(pytest.fail.Exception, match=r"main takes no step"):
        check_parameters("pytest", pytest.main, ["args", "step"], user="peft.py")
