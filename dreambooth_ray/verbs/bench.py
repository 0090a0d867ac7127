"""`dreambooth bench`: throughput against peers, as ratios measured in one run."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

# ruff: noqa: PLC0415  heavy modules are imported by the verb that needs them


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(name="bench")(bench)


def bench(
    theme: Annotated[str, typer.Argument(help="sample, train, ...; a wrong one lists them all")],
    workers: Annotated[str, typer.Option(help="numbers of workers or actors")] = "1,2",
    model: Annotated[str, typer.Option(help="as model.uri")] = "toyworld",
    profile: Annotated[str, typer.Option(help="smoke, within a minute, or full")] = "full",
    file: Annotated[Path | None, typer.Option("--json", help="where the record goes")] = None,
) -> None:
    """Measure a theme against its peers; prints the record as JSON."""
    from dreambooth_ray.errors import ConfigError

    if profile not in ("smoke", "full"):
        raise ConfigError(f"--profile={profile!r} is neither smoke nor full")
    # Before torch is imported: one thread each is how the peers are compared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.theme import Setting, parse_workers, run

    setting = Setting(model, parse_workers(workers), "smoke" if profile == "smoke" else "full")
    record = run(theme, setting)
    _write(record, file)


def _write(record: dict[str, Any], file: Path | None) -> None:
    text = json.dumps(record, indent=1)
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
