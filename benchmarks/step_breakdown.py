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
    loop, seconds = PlainLoop(config, directory), defaultdict[str, float](float)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start_s = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - start_s

        return run

    for name, (owner, method) in {
        "denoiser, forward": (loop.unet, "forward"),
        "text encoder, forward": (loop.text_encoder, "forward"),
        "autoencoder": (loop.vae, "encode"),
        "backward": (loop.accelerator, "backward"),
        "clipping": (loop.accelerator, "clip_grad_norm_"),
        "optimizer": (loop.optimizer, "step"),
    }.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    torch.set_num_threads(1)
    loop.run_steps(3)
    seconds.clear()
    total_s = loop.run_steps(steps).cpu_s
    assert total_s is not None
    shares = {name: round(s / total_s, 3) for name, s in seconds.items()}
    denoiser_share = shares["denoiser, forward"] + shares["backward"]
    other_share = round(1 - sum(shares.values()), 3)
    return {
        "shares": {**shares, "images and the rest": other_share},
        "bound": round(1 / denoiser_share, 3),
    }


def explain_missed_bar(case: dict[str, Any], breakdown: dict[str, Any]) -> str:
    """What a case that is below its bar owes to what the denoiser itself takes."""
    bound, bar, ratio = breakdown["bound"], case["bar"], case["ratio"]["median"]
    text = (
        f"{case['case']}: {ratio:.2f} of {bar}. A loop of nothing but the denoiser's forward and "
        f"backward would be {bound:.2f} times as fast as the plain loop with the same allocator"
    )
    if ratio > bound:
        return (
            f"{text}. Ours is beyond that, since its forward is played from a recording; what is "
            "left is nearly all the operations of forward and backward (profile.json)."
        )
    if bound < bar:
        return f"{text}: what can be spared around them is less than the bar asks."
    return f"{text}; what lies between is the optimizer, clipping, records and Lightning's loop."
