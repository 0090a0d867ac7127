"""Every verb of `dreambooth`."""

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pages.markdown import cell, code, page, table


def command_line() -> str:
    """Every verb with its arguments and options."""
    from typer.main import get_command  # noqa: PLC0415

    from dreambooth_ray.cli.main import app  # noqa: PLC0415

    intro = (
        "Every verb takes `--help`, and `--debug` shows the traceback of an error. Exit codes: 0 "
        "done, 2 a mistake in the input (one line says which value and what to do), 1 anything "
        "else. Results go to the standard output, progress to the standard error."
    )
    parts = list(verbs(get_command(app), "dreambooth"))
    return page("Command line", "dreambooth_ray/cli", intro, *parts)


def verbs(command: Any, path: str) -> Iterator[str]:
    """A heading, usage and a table for a command, then for those below it."""
    # Of a group that finds its commands when asked, as `bench` does, too.
    below = command.list_commands(None) if hasattr(command, "list_commands") else None
    if path != "dreambooth":
        yield f"## {path}"
        yield cell(" ".join((command.help or "").split()))
    if below is None:
        yield usage(command, path)
        rows = [parameter(p) for p in command.params if p.name != "help"]
        if rows:
            yield table(("argument or option", "type", "default", "meaning"), *rows)
        return
    for name in sorted(below):
        yield from verbs(command.commands[name], f"{path} {name}")


def usage(command: Any, path: str) -> str:
    """The line to type."""
    words = [path]
    for p in command.params:
        if p.param_type_name == "argument":
            name = p.name.upper() + ("..." if p.nargs == -1 else "")
            words.append(name if p.required else f"[{name}]")
        elif p.required:
            words.append(f"{p.opts[0]} {p.name.upper()}")
    if any(p.param_type_name == "option" and not p.required for p in command.params):
        words.append("[OPTIONS]")
    return f"    {' '.join(words)}"


def parameter(p: Any) -> tuple[str, ...]:
    """A row of an argument or option."""
    is_argument = p.param_type_name == "argument"
    name = p.name.upper() if is_argument else ", ".join([*p.opts, *p.secondary_opts])
    annotation = p.type_descriptor.annotation
    limits = [f"from {p.min}"] * (p.min is not None) + [f"to {p.max}"] * (p.max is not None)
    kinds = {bool: "switch", str: "text", int: "whole number", float: "number", Path: "path"}
    words = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    kind = " ".join([" or ".join(words) or kinds.get(annotation, "text, repeatable"), *limits])
    default = p.default.as_posix() if isinstance(p.default, Path) else p.default
    if default is None and isinstance(getattr(p, "show_default", None), str):
        default = p.show_default
    if p.required:
        shown = "*required*"
    elif default is None or default is False or default == "":
        shown = ""
    else:
        shown = code("on" if default is True else default)
    return code(name), kind, shown, cell(p.help or "")
