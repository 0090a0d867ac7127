"""What a step of the plain loop is made of, so that one sees how much of it can be spared."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.plain_loop import PlainLoop
from dreambooth_ray.config.schema import Config


def measure_breakdown(config: Config, directory: str, steps: int) -> dict[str, Any]:
    """Shares of processor time of the plain loop's parts, this process being it.

    returns: `shares` by part, and `bound`: how many times as fast a loop would be that did
        nothing but the denoiser's forward and backward, as diffusers and peft have them
    """
    plain_loop, cpu_s_by_part = PlainLoop(config, directory), defaultdict[str, float](float)

    def wrap_with_timer(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run_timed(*args: Any, **kwargs: Any) -> Any:
            start_s = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                cpu_s_by_part[name] += time.process_time() - start_s

        return run_timed

    for part_name, (method_owner, method_name) in {
        "denoiser, forward": (plain_loop.unet, "forward"),
        "text encoder, forward": (plain_loop.text_encoder, "forward"),
        "autoencoder": (plain_loop.vae, "encode"),
        "backward": (plain_loop.accelerator, "backward"),
        "clipping": (plain_loop.accelerator, "clip_grad_norm_"),
        "optimizer": (plain_loop.optimizer, "step"),
    }.items():
        setattr(
            method_owner,
            method_name,
            wrap_with_timer(part_name, getattr(method_owner, method_name)),
        )
    torch.set_num_threads(1)
    plain_loop.run_steps(3)
    cpu_s_by_part.clear()
    total_s = plain_loop.run_steps(steps).cpu_s
    assert total_s is not None
    cpu_shares = {name: round(s / total_s, 3) for name, s in cpu_s_by_part.items()}
    denoiser_share = cpu_shares["denoiser, forward"] + cpu_shares["backward"]
    other_share = round(1 - sum(cpu_shares.values()), 3)
    return {
        "shares": {**cpu_shares, "images and the rest": other_share},
        "bound": round(1 / denoiser_share, 3),
    }


def explain_missed_bar(case: dict[str, Any], breakdown: dict[str, Any]) -> str:
    """What a case that is below its bar owes to what the denoiser itself takes."""
    max_speedup, min_speedup, median_ratio = (
        breakdown["bound"],
        case["bar"],
        case["ratio"]["median"],
    )
    explanation = (
        f"{case['case']}: {median_ratio:.2f} of {min_speedup}. A loop of nothing but the "
        f"denoiser's forward and backward would be {max_speedup:.2f} times as fast as the plain "
        "loop with the same allocator"
    )
    if median_ratio > max_speedup:
        return (
            f"{explanation}. Ours is beyond that, since its forward is played from a recording; "
            "what is left is nearly all the operations of forward and backward (profile.json)."
        )
    if max_speedup < min_speedup:
        return f"{explanation}: what can be spared around them is less than the bar asks."
    return (
        f"{explanation}; what lies between is the optimizer, clipping, records and Lightning's "
        "loop."
    )
