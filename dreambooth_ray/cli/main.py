"""The command line: its verbs in the order of a person's way, and how errors are shown."""

import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dreambooth_ray.cli import (
    bench,
    caption,
    catalog,
    cluster,
    crops,
    demo,
    doctor,
    evaluate,
    export,
    fleet,
    gc,
    generate,
    identifier,
    learning_rate_finder,
    merge,
    preflight,
    print_schema,
    priors,
    run_commands,
    serve,
    storage_copy,
    toyworld,
    train,
)
from dreambooth_ray.config.section import expand_home
from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.imports import how_to_install

# Panels of --help. A group of verbs is shown behind the verbs of its panel.
_PANELS: dict[str, list[Callable[..., Any] | typer.Typer]] = {
    "Try": [demo.demo, toyworld.app],
    "Prepare": [
        doctor.doctor,
        crops.crops,
        caption.caption,
        identifier.identifier,
        print_schema.schema,
        preflight.preflight,
        learning_rate_finder.lr,
        priors.app,
    ],
    "Train": [train.train, train.resume, fleet.app],
    "Look": [generate.generate, evaluate.evaluate, export.export],
    "Combine": [merge.merge, merge.resize],
    "Keep": [gc.gc, storage_copy.copy],
    "Serve": [serve.serve, serve.key, catalog.app],
    "Cluster": [
        run_commands.submit,
        run_commands.watch,
        run_commands.logs,
        run_commands.stop,
        run_commands.ls,
        cluster.app,
    ],
    "Measure": [bench.app],
}

app = typer.Typer(
    name="dreambooth",
    help="Teach a text-to-image model your subject, and let it keep what it knew.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _panel, _verbs in _PANELS.items():
    for _verb in _verbs:
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb, rich_help_panel=_panel)
        else:
            app.command(rich_help_panel=_panel)(_verb)

Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


@app.callback()
def _declare_debug_option(debug: Debug = False) -> None:
    """Options of every verb; --debug is read where errors are shown."""


def main() -> None:
    """Run a verb; exit code 0 done, 2 the caller's mistake, 1 anything else."""
    # Before any of its modules is imported, or it warns of what nobody here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # DeepSpeed, where it is installed, says on stdout which device it has found.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    # Names of files need not be UTF-8; they are printed as they are.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    debug = "--debug" in sys.argv
    # Accepted anywhere on the line, not only before the verb.
    expanded_arguments = [_expand_home_in_option(a) for a in sys.argv[1:] if a != "--debug"]
    try:
        app(expanded_arguments)
    except DreamBoothError as error:
        # A plain DreamBoothError is work that failed; its kinds are input at fault.
        _exit_with_error(error, 1 if type(error) is DreamBoothError else 2, debug)
    except KeyboardInterrupt as error:
        _exit_with_error(DreamBoothError("stopped; what was committed is kept"), 1, debug, error)
    except ModuleNotFoundError as error:
        _exit_with_error(*_explain_missing_module(error), debug, error)
    except Exception as error:  # the edge: everything else becomes one line
        _exit_with_error(_wrap_unexpected_error(error), 1, debug, error)


def _expand_home_in_option(argument: str) -> str:
    """`--out=~/x` with the home folder, which shells leave to programs."""
    option_name, equals, option_value = argument.partition("=")
    if not (equals and option_name.startswith("--") and re.match(r"~(/|$)", option_value)):
        return argument
    return f"{option_name}={expand_home(option_value)}"


def _wrap_unexpected_error(error: Exception) -> DreamBoothError:
    return DreamBoothError(f"{type(error).__name__}: {error} (--debug shows where)")


def _explain_missing_module(error: ModuleNotFoundError) -> tuple[DreamBoothError, int]:
    """The error to show, and the exit code: a package of an extra is the caller's to install."""
    remedy = how_to_install(error.name or "")
    if remedy is None:
        return _wrap_unexpected_error(error), 1
    return ConfigError(f"{error.name} is not installed: {remedy}"), 2


def _exit_with_error(
    error: DreamBoothError, code: int, debug: bool, cause: BaseException | None = None
) -> None:
    if debug:
        traceback.print_exception(cause or error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
