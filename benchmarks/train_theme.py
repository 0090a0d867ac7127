"""Theme `train`: the product's training against a plain diffusers loop, one worker, one thread.

Ours is the run that `dreambooth train` makes: Ray Train's worker, Lightning, tracking. Both
train the same model on the same images at the same batch, each in its own process, and wait
for each other's turn; starting up does not count. The product gives its workers the jemalloc
that Ray brings; the plain loop has the allocator that Python has. What that does is measured
too: the plain loop with jemalloc as well, and ours without.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from diffusers import UNet2DConditionModel

from benchmarks.ceiling import count_flops, measure_ceilings
from benchmarks.gated_runs import GatedRun, dump_portable_config, make_config, start_gated_run
from benchmarks.measure import BenchmarkCase, TimedWork, WallAndCpuTime, compare_sides
from benchmarks.plain_loop import PlainLoop
from benchmarks.plain_loop_breakdown import explain_missed_bar, measure_breakdown
from benchmarks.theme import BenchmarkSettings
from cluster.session import ray_connection
from dreambooth_ray.config.allocator import ALLOCATOR
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.training.metrics_log import read_metrics

METHODS = {"full with text encoder": 1.4, "lora": 1.8}
# A worker and its class-image actor, with the peer, twice.
PROCESSES = 6
# What our workers would have without jemalloc: glibc told to keep large blocks.
GLIBC = {name: value for name, value in ALLOCATOR.items() if name != "LD_PRELOAD"}


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Both methods, in smoke profile the first, in turns with the plain loop."""
    torch.set_num_threads(1)
    benchmark_cases: list[dict[str, Any]] = []
    has_equal_losses: dict[str, bool] = {}
    step_breakdowns: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder,
        ray_connection(ClusterConfig(), PROCESSES, is_bare=True),
    ):
        for method in list(METHODS)[: setting.pick(1, 2)]:
            config = make_config(Path(temp_folder), setting, method.partition(" ")[0], 1)
            with ExitStack() as stack:
                benchmark_cases.append(_compare_with_plain_loop(stack, method, config, setting))
            if setting.profile == "full":
                with ExitStack() as stack:
                    allocator_cases, has_equal_losses[method] = _compare_allocators(
                        stack, method, config, setting
                    )
                    benchmark_cases += allocator_cases
                model_path = str(model_directory(setting.model))
                step_breakdowns[method] = measure_breakdown(
                    config, model_path, _steps_per_benchmark_turn(setting)
                )
    return {
        "headline": {"diffusers": "full with text encoder"},
        "cases": benchmark_cases,
        "plain_loop_is_made_of": step_breakdowns,
        "below_the_bar": [
            explain_missed_bar(case, step_breakdowns[case["case"]])
            for case in benchmark_cases
            if case["case"] in step_breakdowns and not case.get("reached", True)
        ],
        "equal_losses_by_either_allocator": has_equal_losses,
        "configuration": {
            "steps_a_turn": _steps_per_benchmark_turn(setting), "run": dump_portable_config(config),
            "allocator": sorted(ALLOCATOR), "peer_allocator": "as Python has it",
        },
        "utilisation": _compute_matmul_utilisation(setting, config.train.side_px, benchmark_cases),
    }  # fmt: skip


def _steps_per_benchmark_turn(setting: BenchmarkSettings) -> int:
    return setting.pick(8, 25)


def _compare_with_plain_loop(
    stack: ExitStack, method: str, config: Config, setting: BenchmarkSettings
) -> dict[str, Any]:
    """As each side comes."""
    run_plain_turn = _start_plain_loop(stack, config, setting, {})
    step_gated_run = stack.enter_context(start_gated_run(config))
    benchmark_case = BenchmarkCase(
        method, "diffusers", _count_images_per_turn(config, setting), "images", METHODS[method]
    )
    step_gated_run.wait_until_ready()
    return compare_sides(
        benchmark_case,
        partial(step_gated_run.run_steps, _steps_per_benchmark_turn(setting)),
        run_plain_turn,
        setting.pick(3, 8),
    )


def _compare_allocators(
    stack: ExitStack, method: str, config: Config, setting: BenchmarkSettings
) -> tuple[list[dict[str, Any]], bool]:
    """Both sides with jemalloc, and ours with it against ours without; whether losses are equal."""
    run_plain_turn = _start_plain_loop(stack, config, setting, ALLOCATOR)
    step_gated_runs: dict[str, GatedRun] = {}
    for allocator_name, allocator_environment in (("jemalloc", ALLOCATOR), ("glibc", GLIBC)):
        allocator_run_config = config.model_copy(
            update={"run_id": f"{config.run_id}-{allocator_name}"}
        )
        step_gated_runs[allocator_name] = stack.enter_context(
            start_gated_run(allocator_run_config, allocator_environment)
        )
    for step_gated_run in step_gated_runs.values():
        step_gated_run.wait_until_ready()
    num_images, steps_per_turn = (
        _count_images_per_turn(config, setting),
        _steps_per_benchmark_turn(setting),
    )

    def compare_case(comparison_name: str, peer: str, other_work: TimedWork) -> dict[str, Any]:
        benchmark_case = BenchmarkCase(f"{method}, {comparison_name}", peer, num_images, "images")
        return compare_sides(
            benchmark_case,
            partial(step_gated_runs["jemalloc"].run_steps, steps_per_turn),
            other_work,
            setting.pick(2, 5),
        )

    cases = [
        compare_case("both with jemalloc", "diffusers_jemalloc", run_plain_turn),
        compare_case(
            "jemalloc against glibc",
            "glibc",
            partial(step_gated_runs["glibc"].run_steps, steps_per_turn),
        ),
    ]
    metrics_by_run = [
        read_metrics(step_gated_run.store) for step_gated_run in step_gated_runs.values()
    ]
    num_common_steps = min(len(metrics) for metrics in metrics_by_run)
    return cases, metrics_by_run[0][:num_common_steps] == metrics_by_run[1][:num_common_steps]


def _start_plain_loop(
    stack: ExitStack,
    config: Config,
    setting: BenchmarkSettings,
    allocator_environment: Mapping[str, str],
) -> Callable[[], WallAndCpuTime]:
    """The peer in an actor, started; its turn."""
    plain_loop_actor_class = ray.remote(
        num_cpus=1, runtime_env={"env_vars": dict(allocator_environment)}
    )(PlainLoop)
    plain_loop = plain_loop_actor_class.remote(config, str(model_directory(setting.model)))
    stack.callback(ray.kill, plain_loop)

    def run_plain_loop_turn() -> WallAndCpuTime:
        elapsed: WallAndCpuTime = ray.get(
            plain_loop.run_steps.remote(_steps_per_benchmark_turn(setting))
        )
        return elapsed

    return run_plain_loop_turn


def _count_images_per_turn(config: Config, setting: BenchmarkSettings) -> int:
    return 2 * config.train.batch_size * _steps_per_benchmark_turn(setting)


def _compute_matmul_utilisation(
    setting: BenchmarkSettings, side_px: int, cases: list[dict[str, Any]]
) -> dict[str, Any]:
    """Share of the machine's matmul rate that forward and backward of the UNet reach."""
    components = load_components(model_directory(setting.model))
    components.text_encoder.requires_grad_(False)
    gflop_per_image = (
        count_flops(
            lambda: _run_forward_backward(components.unet, side_px // components.latent_factor)
        )
        / 1e9
    )
    matmul_gflops = measure_ceilings()["matmul_gflops"]
    full_finetuning_case = next(c for c in cases if c["case"] == "full with text encoder")
    if "ratio" not in full_finetuning_case:
        return {"gflop_an_image": round(gflop_per_image, 2)}
    return {
        "gflop_an_image": round(gflop_per_image, 2),
        "ours": round(full_finetuning_case["ours"]["median"] * gflop_per_image / matmul_gflops, 3),
        "theirs": round(
            full_finetuning_case["theirs"]["median"] * gflop_per_image / matmul_gflops, 3
        ),
    }


def _run_forward_backward(unet: UNet2DConditionModel, side: int) -> None:
    unet_config: Any = unet.config
    x = torch.zeros(1, unet_config.in_channels, side, side)
    encoder_hidden_states = torch.zeros(1, 77, unet_config.cross_attention_dim)
    unet(x, torch.zeros(1), encoder_hidden_states).sample.sum().backward()
