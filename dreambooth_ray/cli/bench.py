"""`dreambooth bench`: throughput against peers, as ratios measured in one run."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dreambooth_ray.errors import ConfigError

# ruff: noqa: PLC0415  heavy modules are imported by the verb that needs them

RESULTS = Path("benchmarks/results")


class _BenchGroup(TyperGroup):
    """A command for each theme, once somebody asks for them: images may lack the benchmarks."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._add_benchmark_commands()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_benchmark_commands()
        return super().list_commands(ctx)

    def _add_benchmark_commands(self) -> None:
        try:
            from benchmarks.themes import THEMES
        except ModuleNotFoundError as error:
            raise ConfigError(
                "bench needs the package benchmarks, which is not installed: "
                "pip install 'dreambooth-ray[bench]', or run it in a checkout of the source"
            ) from error
        benchmark_app = typer.Typer()
        for benchmark_name, (_, benchmark_help) in THEMES.items():
            benchmark_app.command(name=benchmark_name, help=benchmark_help)(
                _make_benchmark_command(benchmark_name)
            )
        self.commands = {**typer.main.get_group(benchmark_app).commands, **self.commands}


app = typer.Typer(
    name="bench",
    cls=_BenchGroup,
    help="Throughput against peers, as ratios measured in one run.",
    no_args_is_help=True,
)


def _make_benchmark_command(theme: str) -> Callable[..., None]:
    def run_benchmark(
        workers: Annotated[
            str, typer.Option(help="numbers of workers or actors; 1,2, or all that a cluster has")
        ] = "",
        model: Annotated[str, typer.Option(help="as model.uri")] = "toyworld",
        profile: Annotated[str, typer.Option(help="smoke, within a minute, or full")] = "full",
        file: Annotated[Path | None, typer.Option("--json", help="where it goes")] = None,
        address: Annotated[
            str, typer.Option(help="train and serve: of a Ray cluster to measure instead")
        ] = "",
        storage: Annotated[str, typer.Option(help="with --address: that all hosts see")] = "",
        gpus: Annotated[bool, typer.Option("--gpus", help="with --address: one a worker")] = False,
    ) -> None:
        if profile not in ("smoke", "full"):
            raise ConfigError(f"--profile={profile!r} is neither smoke nor full")
        if address:
            cluster_options = {"address": address, "storage": storage or "out", "gpus": gpus}
            _run_benchmark_on_cluster(theme, workers, model, profile, file, cluster_options)
        elif storage or gpus:
            raise ConfigError("--storage and --gpus are of a cluster; give its --address as well")
        else:
            _run_local_benchmark(theme, workers or "1,2", model, profile, file)

    return run_benchmark


def _run_benchmark_on_cluster(
    theme: str,
    workers: str,
    model: str,
    profile: str,
    file: Path | None,
    cluster_options: dict[str, Any],
) -> None:
    """cluster_options: `address`, `storage` and `gpus` of a ClusterSetting"""
    from benchmarks.cluster_throughput import ClusterSetting, run_cluster_benchmark
    from benchmarks.theme import parse_worker_counts

    worker_counts = parse_worker_counts(workers) if workers else ()
    benchmark_setting = ClusterSetting(
        model=model,
        workers=worker_counts,
        profile="smoke" if profile == "smoke" else "full",
        **cluster_options,
    )
    _print_and_write_json(run_cluster_benchmark(theme, benchmark_setting), file)


def _run_local_benchmark(
    theme: str, workers: str, model: str, profile: str, file: Path | None
) -> None:
    # Before torch is imported: one thread each is how the peers are compared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.theme import BenchmarkSettings, parse_worker_counts, run_benchmark_theme

    benchmark_setting = BenchmarkSettings(
        model, parse_worker_counts(workers), "smoke" if profile == "smoke" else "full"
    )
    _print_and_write_json(run_benchmark_theme(theme, benchmark_setting), file)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="folder of records")] = RESULTS,
    readme: Annotated[Path | None, typer.Option(help="file whose table is made anew")] = None,
) -> None:
    """Draw ratios.svg beside the records; print their table, or put it into a README."""
    from benchmarks.bench_report import format_table, plot_ratios, put_table, read_benchmark_records

    benchmark_records = read_benchmark_records(results)
    plot_ratios(benchmark_records, results / "ratios.svg")
    if readme is None:
        print(format_table(benchmark_records))
    else:
        put_table(readme, format_table(benchmark_records))


@app.command()
def plan(
    gpus: Annotated[int, typer.Option(min=1)],
    subjects: Annotated[int, typer.Option(min=1)],
    step_s: Annotated[
        float | None,
        typer.Option(help="seconds of a training step on one GPU; as measured by `bench train`"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="of one subject")] = 800,
    start_s: Annotated[float, typer.Option(help="from submission to the first step")] = 25.0,
    checkpoint_mb: Annotated[float, typer.Option(help="MB of one checkpoint")] = 4000.0,
    link_gb_s: Annotated[float, typer.Option(help="GB/s of a job to storage")] = 1.0,
    mtbf_h: Annotated[float, typer.Option(help="hours between failures of one GPU")] = 5000.0,
    efficiency: Annotated[float, typer.Option(help="of twice the GPUs for a subject")] = 0.95,
    price_h: Annotated[float, typer.Option(help="of a GPU's hour")] = 2.0,
    slots: Annotated[
        int, typer.Option(min=0, help="also a fleet: of a batch on each GPU; 0: none")
    ] = 0,
    subject_s: Annotated[
        float | None,
        typer.Option(min=0, help="with --slots: beyond a subject's steps; as `bench fleet` has it"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the simulated failures")] = 0,
) -> None:
    """Plan a cluster: time, cost, checkpoint interval and GPUs a subject; prints JSON.

    With --slots also a fleet's on 1, 8 and 1,000 GPUs, and what of it was measured.
    """
    from benchmarks.cluster_cost_plan import (
        Cluster,
        TrainingWorkload,
        plan_gpus_per_subject,
        read_measured_step_s,
    )
    from benchmarks.fleet_costs import estimate_fleet_costs, read_batch_gain

    if subject_s is not None and not slots:
        raise ConfigError(f"--subject-s={subject_s:g} is of a fleet; give its --slots as well")
    batch_gain = read_batch_gain(RESULTS) if slots else None
    if step_s is None:
        step_s, measurement_source = (
            (batch_gain.step_s, f"one subject's LoRA, {batch_gain.source}")
            if batch_gain
            else read_measured_step_s(RESULTS)
        )
        print(
            f"step_s={step_s:.4f}, measured: {measurement_source}; --step-s names another",
            file=sys.stderr,
        )
    workload = TrainingWorkload(subjects, steps, step_s, start_s, checkpoint_mb * 1e6, efficiency)
    planned_cluster = Cluster(gpus, link_gb_s * 1e9, mtbf_h * 3600, price_h)
    plan_record = plan_gpus_per_subject(workload, planned_cluster, seed)
    if batch_gain is not None:
        fleet_plan = estimate_fleet_costs(workload, planned_cluster, slots, batch_gain, subject_s)
        plan_record["fleet"] = fleet_plan
    _print_and_write_json(plan_record, None)


def _print_and_write_json(record: dict[str, Any], file: Path | None) -> None:
    record_json = json.dumps(record, indent=1)
    print(record_json)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(record_json + "\n")
