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

from benchmarks.ceiling import ceilings, flops
from benchmarks.gated_runs import Run, about, make_config, running
from benchmarks.measure import Case, Spent, Timed, compare
from benchmarks.plain_loop import PlainLoop
from benchmarks.step_breakdown import anatomy, why
from benchmarks.theme import Setting
from cluster.session import connection
from dreambooth_ray.config.allocator import ALLOCATOR
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.source import model_directory
from dreambooth_ray.training.metrics_log import read_metrics

METHODS = {"full with text encoder": 1.4, "lora": 1.8}
# A worker and its class-image actor, with the peer, twice.
PROCESSES = 6
# What our workers would have without jemalloc: glibc told to keep large blocks.
GLIBC = {name: value for name, value in ALLOCATOR.items() if name != "LD_PRELOAD"}


def measure(setting: Setting) -> dict[str, Any]:
    """Both methods, in smoke profile the first, in turns with the plain loop."""
    torch.set_num_threads(1)
    cases: list[dict[str, Any]] = []
    equal: dict[str, bool] = {}
    parts: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name,
        connection(ClusterConfig(), PROCESSES, is_bare=True),
    ):
        for method in list(METHODS)[: setting.pick(1, 2)]:
            config = make_config(Path(name), setting, method.partition(" ")[0], 1)
            with ExitStack() as stack:
                cases.append(_against_plain(stack, method, config, setting))
            if setting.profile == "full":
                with ExitStack() as stack:
                    found, equal[method] = _allocators(stack, method, config, setting)
                    cases += found
                directory = str(model_directory(setting.model))
                parts[method] = anatomy(config, directory, _steps(setting))
    return {
        "headline": {"diffusers": "full with text encoder"},
        "cases": cases,
        "plain_loop_is_made_of": parts,
        "below_the_bar": [
            why(case, parts[case["case"]])
            for case in cases
            if case["case"] in parts and not case.get("reached", True)
        ],
        "equal_losses_by_either_allocator": equal,
        "configuration": {
            "steps_a_turn": _steps(setting), "run": about(config),
            "allocator": sorted(ALLOCATOR), "peer_allocator": "as Python has it",
        },
        "utilisation": _utilisation(setting, config.train.resolution, cases),
    }  # fmt: skip


def _steps(setting: Setting) -> int:
    return setting.pick(8, 25)


def _against_plain(
    stack: ExitStack, method: str, config: Config, setting: Setting
) -> dict[str, Any]:
    """As each side comes."""
    theirs = _plain(stack, config, setting, {})
    ours = stack.enter_context(running(config))
    case = Case(method, "diffusers", _images(config, setting), "images", METHODS[method])
    ours.ready()
    return compare(case, partial(ours.steps, _steps(setting)), theirs, setting.pick(3, 8))


def _allocators(
    stack: ExitStack, method: str, config: Config, setting: Setting
) -> tuple[list[dict[str, Any]], bool]:
    """Both sides with jemalloc, and ours with it against ours without; whether losses differ."""
    theirs = _plain(stack, config, setting, ALLOCATOR)
    runs: dict[str, Run] = {}
    for name, allocator in (("jemalloc", ALLOCATOR), ("glibc", GLIBC)):
        own = config.model_copy(update={"run_id": f"{config.run_id}-{name}"})
        runs[name] = stack.enter_context(running(own, allocator))
    for run in runs.values():
        run.ready()
    images, steps = _images(config, setting), _steps(setting)

    def case(name: str, peer: str, other: Timed) -> dict[str, Any]:
        about = Case(f"{method}, {name}", peer, images, "images")
        return compare(about, partial(runs["jemalloc"].steps, steps), other, setting.pick(2, 5))

    cases = [
        case("both with jemalloc", "diffusers_jemalloc", theirs),
        case("jemalloc against glibc", "glibc", partial(runs["glibc"].steps, steps)),
    ]
    curves = [read_metrics(run.store) for run in runs.values()]
    common = min(len(curve) for curve in curves)
    return cases, curves[0][:common] == curves[1][:common]


def _plain(
    stack: ExitStack, config: Config, setting: Setting, allocator: Mapping[str, str]
) -> Callable[[], Spent]:
    """The peer in an actor, started; its turn."""
    remote = ray.remote(num_cpus=1, runtime_env={"env_vars": dict(allocator)})(PlainLoop)
    peer = remote.remote(config, str(model_directory(setting.model)))
    stack.callback(ray.kill, peer)

    def turn() -> Spent:
        spent: Spent = ray.get(peer.steps.remote(_steps(setting)))
        return spent

    return turn


def _images(config: Config, setting: Setting) -> int:
    return 2 * config.train.batch_size * _steps(setting)


def _utilisation(setting: Setting, side_px: int, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the machine's matmul rate that forward and backward of the UNet reach."""
    parts = load_components(model_directory(setting.model))
    parts.text_encoder.requires_grad_(False)
    one = flops(lambda: _there_and_back(parts.unet, side_px // parts.latent_factor)) / 1e9
    rate = ceilings()["matmul_gflops"]
    full = next(c for c in cases if c["case"] == "full with text encoder")
    if "ratio" not in full:
        return {"gflop_an_image": round(one, 2)}
    return {
        "gflop_an_image": round(one, 2),
        "ours": round(full["ours"]["median"] * one / rate, 3),
        "theirs": round(full["theirs"]["median"] * one / rate, 3),
    }


def _there_and_back(unet: UNet2DConditionModel, side: int) -> None:
    settings: Any = unet.config
    x = torch.zeros(1, settings.in_channels, side, side)
    hidden = torch.zeros(1, 77, settings.cross_attention_dim)
    unet(x, torch.zeros(1), hidden).sample.sum().backward()
