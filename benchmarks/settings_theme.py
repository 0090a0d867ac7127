"""Theme `settings`: images a second by method, strategy, precision, size, batch and accumulation.

Each is a run of the product on one worker, one thread, in turns with the run of the defaults (all
weights, text encoder, ddp, 32 bits, one photograph and one class image a step). Above 1: more
images a second than the defaults train.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gated_runs import GatedRun, dump_portable_config, make_config, start_gated_run
from benchmarks.measure import BenchmarkCase, compare_sides
from benchmarks.theme import BenchmarkSettings
from cluster.session import ray_connection
from dreambooth_ray.config.machines import ClusterConfig

KEYS: dict[str, tuple[str, ...]] = {
    "lora": ("train.method=lora",),
    "dora": ("train.method=lora", "train.lora.dora=true"),
    "kv": ("train.method=kv",),
    "text encoder frozen": ("train.text_encoder=false",),
    "fsdp2": ("train.strategy=fsdp2",),
    "deepspeed stage 2": ("train.strategy=deepspeed", "train.deepspeed.stage=2"),
    "bf16-mixed": ("train.precision=bf16-mixed",),
    "half the side": (),
    "batch of 4": ("train.batch_size=4",),
    "batch of 4 in 4 parts": ("train.batch_size=4", "train.accumulate=4"),
    # It trains on no class images, and the runs of a theme have a folder of them.
    "output preserved": ("prior.kind=output", "prior.folder=null", "prior.count=0"),
    "output and class images": ("prior.kind=both",),
    "gradient checkpointing": ("train.gradient_checkpointing=true",),
}
SMOKE = ("lora", "output preserved", "output and class images")
# A run and the defaults', each a worker and its class-image actor.
PROCESSES = 6


def count_turn_images(overrides: Sequence[str], passes: int) -> int:
    """Images of both halves in so many batches of a worker, which are what is counted.

    A batch of an accumulating run is a part of its step's. A photograph under its caption without
    identifier counts as the class image that it stands for.
    """
    override_values = dict(key.split("=") for key in overrides)
    batch_size, accumulation_steps = (
        int(override_values.get("train.batch_size", 1)),
        int(override_values.get("train.accumulate", 1)),
    )
    return 2 * batch_size // accumulation_steps * passes


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Every setting against the defaults."""
    torch.set_num_threads(1)
    num_batches, num_pairs = setting.pick(6, 16), setting.pick(2, 4)
    setting_names = SMOKE if setting.profile == "smoke" else tuple(KEYS)
    with (
        tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as folder,
        ray_connection(ClusterConfig(), PROCESSES, is_bare=True),
    ):
        config = make_config(Path(folder), setting, "defaults", 1)
        with start_gated_run(config) as default_run:
            side_px = config.train.side_px
            cases = [
                _compare_with_defaults(
                    name, Path(folder), setting, default_run, num_batches, num_pairs, side_px
                )
                for name in setting_names
            ]
    return {
        "headline": {"defaults": setting_names[0]},
        "cases": cases,
        "configuration": {
            "passes_a_turn": num_batches,
            "keys": {name: list(_select_overrides(name, side_px)) for name in setting_names},
            "run": dump_portable_config(config),
        },
    }  # fmt: skip


def _select_overrides(name: str, side_px: int) -> tuple[str, ...]:
    return (f"train.resolution={side_px // 2}",) if name == "half the side" else KEYS[name]


def _compare_with_defaults(
    name: str,
    folder: Path,
    setting: BenchmarkSettings,
    default_run: GatedRun,
    num_batches: int,
    num_pairs: int,
    side_px: int,
) -> dict[str, Any]:
    overrides = _select_overrides(name, side_px)
    config = make_config(folder, setting, f"setting-{name.replace(' ', '-')}", 1, *overrides)
    case = BenchmarkCase(
        name, "defaults", count_turn_images((), num_batches), "images",
        ours_amount=count_turn_images(overrides, num_batches),
    )  # fmt: skip
    with start_gated_run(config) as gated_run:
        gated_run.wait_until_ready()
        # Not before: the first setting starts beside the defaults.
        default_run.wait_until_ready()
        return compare_sides(
            case,
            partial(gated_run.run_steps, num_batches),
            partial(default_run.run_steps, num_batches),
            num_pairs,
        )
