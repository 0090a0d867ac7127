"""Load: 16 callers over four subjects, our endpoint against `@serve.batch` around diffusers.

    make load

Both sides have the same replicas, subjects, callers and seconds, in turns. Every
picture of ours is then drawn alone from its receipt and compared.
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray.serve
import torch
from PIL import Image

from benchmarks import serve_peer
from benchmarks.conditions import conditions
from benchmarks.measure import summary
from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.config.training import LoraConfig
from dreambooth_ray.diffusion import adapters
from dreambooth_ray.diffusion.components import load_components, model_directory, model_hash
from dreambooth_ray.diffusion.engine import Engine
from dreambooth_ray.diffusion.request import Request
from dreambooth_ray.storage import layout, manifest
from dreambooth_ray.storage.store import Store
from serve.app import build

CALLERS, REPLICAS, PORT = 16, 2, 8765
_LOCUSTFILE = Path(__file__).with_name("serve_callers.py")


def make_subjects(storage: Path) -> dict[str, str]:
    """Four adapters of random weights, committed as runs would commit them; folders by name."""
    base, found, settings = model_directory("toyworld"), {}, LoraConfig()
    for k in range(4):
        parts = load_components(base)
        adapters.inject(parts.unet, settings, settings.target_modules, seed=k)
        generator = torch.Generator().manual_seed(k)
        for name, weight in parts.unet.named_parameters():
            if "lora_B" in name:
                weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
        run_id = f"subject-{k}"
        with tempfile.TemporaryDirectory() as folder:
            adapters.save(parts.unet, Path(folder) / layout.ADAPTER / "unet")
            about: dict[str, object] = {
                "kind": "adapter",
                "base_model": "toyworld",
                "base_hash": model_hash(base),
            }
            store = Store(str(storage)).sub(layout.run(run_id))
            manifest.publish(store, layout.BUNDLE, Path(folder), about)
        found[run_id] = str(storage / layout.run(run_id) / layout.BUNDLE)
    return found


def run_callers(locust: str, seconds: int, out: Path | None) -> dict[str, Any]:
    """Let the callers loose on whatever is served; requests a second and latencies."""
    command = [
        locust, "-f", str(_LOCUSTFILE), "--headless", "--json", "--only-summary",
        "-u", str(CALLERS), "-r", str(CALLERS), "-t", f"{seconds}s", "-s", "60",
        "--host", f"http://127.0.0.1:{PORT}",
    ]  # fmt: skip
    environment = os.environ | ({"CALLERS_OUT": str(out)} if out else {})
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    stats = json.loads(done.stdout)[0]
    times = {float(ms): count for ms, count in stats["response_times"].items()}
    latencies = np.repeat(list(times), list(times.values()))
    lasted_s = stats["last_request_timestamp"] - stats["start_time"]
    return {
        "images": stats["num_requests"] - stats["num_failures"],
        "failures": stats["num_failures"],
        "images_per_s": (stats["num_requests"] - stats["num_failures"]) / lasted_s,
        "p50_s": float(np.percentile(latencies, 50)) / 1000,
        "p95_s": float(np.percentile(latencies, 95)) / 1000,
    }


def serve_ours(storage: Path) -> None:
    config = ServeConfig.model_validate(
        {
            "storage": {"uri": str(storage)},
            "replicas": {"minimum": REPLICAS, "maximum": REPLICAS},
        }
    )
    ray.serve.run(build(config), name="dreambooth")


def warm_up(subjects: list[str]) -> None:
    """Wait until every subject has been drawn once by each replica, or nearly so."""
    for name in subjects * REPLICAS:
        body = {
            "model": name, "prompt": "a robot", "seed": 0,
            "num_inference_steps": 2, "guidance_scale": 3.0,
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/images/generations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(request, timeout=120).read()
                break
            except urllib.error.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def one_side(
    start: Callable[[], object], name: str, locust: str, seconds: int, out: Path | None
) -> dict[str, Any]:
    start()
    warm_up([f"subject-{k}" for k in range(4)])
    found = run_callers(locust, seconds, out)
    ray.serve.delete(name)
    return found


def check(answers: Path, bundles: dict[str, str]) -> dict[str, Any]:
    """Draw every picture alone from its receipt; how far the served ones are from those."""
    torch.set_num_threads(1)
    engine, worst, wrong, total = Engine(model_directory("toyworld")), 0, 0, 0
    for name, folder in bundles.items():
        engine.add_adapter(name, Path(folder) / layout.ADAPTER)
    for path in sorted(answers.glob("*.json")):
        kept = json.loads(path.read_text())
        receipt, asked = kept["image"]["receipt"], kept["asked"]
        if any(receipt[k] != asked[k] for k in ("prompt", "seed", "guidance_scale")):
            wrong += 1
        alone = engine.draw(
            [
                Request(
                    receipt["prompt"],
                    receipt["seed"],
                    num_inference_steps=receipt["num_inference_steps"],
                    guidance_scale=receipt["guidance_scale"],
                    solver=receipt["solver"],
                    adapter=receipt["model"].partition("@")[0],
                )
            ]
        )[0].image
        served = Image.open(io.BytesIO(base64.b64decode(kept["image"]["b64_json"])))
        apart = np.abs(np.asarray(alone, dtype=int) - np.asarray(served, dtype=int)).max()
        worst, total = max(worst, int(apart)), total + 1
    return {"pictures": total, "worst_pixel_difference": worst, "receipts_of_others": wrong}


def turns(
    locust: str, seconds: int, rounds: int, storage: Path, answers: Path, bundles: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Both sides `rounds` times, each beginning every other round; what each turn found."""
    peer = serve_peer.build(bundles, REPLICAS)

    def serve_theirs() -> None:
        ray.serve.run(peer, name="peer", route_prefix="/v1/images/generations")

    sides: dict[str, tuple[Callable[[], object], str, Path | None]] = {
        "ours": (lambda: serve_ours(storage), "dreambooth", answers),
        "theirs": (serve_theirs, "peer", None),
    }
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with connection(ClusterConfig(), REPLICAS):
        ray.serve.start(http_options={"port": PORT})
        for k in range(rounds):
            for side in list(sides)[:: 1 if k % 2 == 0 else -1]:
                start, name, out = sides[side]
                found[side].append(one_side(start, name, locust, seconds, out))
                print(side, found[side][-1], file=sys.stderr)
        ray.serve.shutdown()
    return found


def measure(locust: str, seconds: int, rounds: int) -> dict[str, Any]:
    """The record, as `dreambooth bench` writes them: a case for throughput, one for latency."""
    before = conditions()
    with tempfile.TemporaryDirectory() as folder:
        storage, answers = Path(folder) / "storage", Path(folder) / "answers"
        answers.mkdir()
        bundles = make_subjects(storage)
        found = turns(locust, seconds, rounds, storage, answers, bundles)
        after = conditions()["load_average"]
        receipts = check(answers, bundles)
    about = {"peer": "@serve.batch around diffusers", "pairs": rounds}
    rates, tails = (
        [[measured[key] for measured in found[side]] for side in ("ours", "theirs")]
        for key in ("images_per_s", "p95_s")
    )
    speeds = [[1 / tail for tail in side] for side in tails]
    return {
        "theme": "load",
        "cases": [
            {"case": f"{CALLERS} callers, 4 subjects: throughput", "unit": "images/s", "bar": 1.5}
            | about | summary(rates[0], rates[1], 1.5),
            {"case": f"{CALLERS} callers, 4 subjects: 1 / p95 latency", "unit": "1/s", "bar": 1.0}
            | about | summary(speeds[0], speeds[1], 1.0),
        ],
        "turns": found,
        "receipts": receipts,
        "setting": {
            "profile": f"{REPLICAS} replicas, {seconds} s a turn",
            "callers": CALLERS, "replicas": REPLICAS, "seconds": seconds, "batch": 8,
        },
        "conditions": before,
        "load_average_after": after,
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description="our endpoint against @serve.batch")
    options.add_argument("--locust", default="locust", help="the command")
    options.add_argument("--seconds", type=int, default=60, help="a side and round")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--json", type=Path, help="file to write the record to")
    given = options.parse_args()
    record = json.dumps(measure(given.locust, given.seconds, given.rounds), indent=1)
    print(record)
    if given.json is not None:
        given.json.write_text(record + "\n")


if __name__ == "__main__":
    main()
