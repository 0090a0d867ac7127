"""Looks private names up in the installed libraries, and says in a person's words what moved."""

import inspect
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

import pytest


def find_private(library: str, module: str, *paths: str, user: str) -> list[Any]:
    """The objects at `paths` of a library's module; user: what of ours stands on them."""
    try:
        holder = import_module(module)
    except ImportError as error:
        _fail(library, user, f"{module} can't be imported ({error})")
    found = []
    for path in paths:
        value = holder
        for name in path.split("."):
            if not hasattr(value, name):
                _fail(library, user, f"{module} has no {path}")
            value = getattr(value, name)
        found.append(value)
    return found


def check_parameters(library: str, function: Any, names: Sequence[str], *, user: str) -> None:
    """That a function takes all of these parameters."""
    parameters = inspect.signature(function).parameters
    if missing := [name for name in names if name not in parameters]:
        _fail(library, user, f"{function.__qualname__} takes no {', '.join(missing)}")


def check_source(library: str, function: Any, names: Sequence[str], *, user: str) -> None:
    """That a function speaks of all of these names: what it sets on itself, what it reads."""
    source = inspect.getsource(function)
    if missing := [name for name in names if name not in source]:
        _fail(library, user, f"{function.__name__} knows no {', '.join(missing)}")


def _fail(library: str, user: str, what: str) -> Any:
    version = metadata.version(library)
    pytest.fail(
        f"{library} {version}: {what}, and dreambooth_ray/compat/{user} uses it; adapt that "
        f"module, or lower the upper bound of {library} in pyproject.toml",
        pytrace=False,
    )
