"""Theme `serve`: our endpoint against `@serve.batch` and FastAPI around the diffusers pipeline.

Every side has the same processes, one thread each, the same subjects, callers, requests and
seconds, in turns; callers are a process of their own. All sides are up from the start, and who has
no turn has no requests. Saturation is the closed loop of eight callers a replica, of which a smoke
profile has one; the open loop asks at shares of what saturation gave. Every image of ours, or
three in smoke profile, is then drawn alone from its receipt and compared.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray.serve
import torch
from ray.serve.api import RunTarget

from benchmarks import serve_batch, serve_fastapi
from benchmarks.callers import GENERATE, SUBJECTS, ask, question
from benchmarks.measure import Case, clocked, compare, quantiles, summary
from benchmarks.receipts import check
from benchmarks.sample_theme import draw_singly, make_pipeline, mixed_requests
from benchmarks.served_subjects import make_subjects
from benchmarks.theme import Setting
from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.models.source import model_directory
from dreambooth_ray.sampling.engine import Engine
from serve.app import build

CALLERS_A_REPLICA, PORT, FASTAPI_PORT = 8, 8765, 8766
URLS = {
    "ours": f"http://127.0.0.1:{PORT}{GENERATE}",
    "serve_batch": f"http://127.0.0.1:{PORT}/peer",
    "fastapi": f"http://127.0.0.1:{FASTAPI_PORT}{GENERATE}",
}
# Times the peer's throughput at saturation.
BARS = {"serve_batch": 1.5, "fastapi": 3.0}
# The open loop asks at these shares of our throughput at saturation; its p95 is to be below.
SHARES, BOUND_S = (0.4, 0.6, 0.8), 4.0


def measure(setting: Setting) -> dict[str, Any]:
    """Saturation of three sides and, in full, what the open loop and a preview take."""
    torch.set_num_threads(1)
    full = setting.profile == "full"
    replicas = max(setting.workers) if full else 1
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
        storage, answers = Path(name) / "storage", Path(name) / "answers"
        answers.mkdir()
        bundles = make_subjects(storage, setting.model)
        bench = Bench(bundles, storage, answers, replicas, setting.model)
        with ExitStack() as stack:
            stack.enter_context(serve_fastapi.serving(bundles, FASTAPI_PORT, replicas))
            stack.enter_context(connection(ClusterConfig(), 2 * replicas, is_bare=True))
            bench.deploy()
            for k in range(setting.pick(1, 3)):
                bench.round(k, setting.pick(2, 15))
            if full:
                bench.open_loop(15)
                bench.previews(5)
        receipts = check(answers, bundles, setting.model, None if full else 3)
    cases = bench.cases()
    found: dict[str, Any] = {"cases": cases}
    if full:
        found["arithmetic"] = arithmetic(setting)
        found["below_the_bar"] = below(cases, found["arithmetic"]["ratio"]["median"])
    return {
        **found,
        "turns": bench.turns,
        "open_loop": bench.opened,
        "receipts": receipts,
        "configuration": {
            "callers": bench.callers, "replicas": replicas, "subjects": len(SUBJECTS), "batch": 8,
            "seconds_a_turn": setting.pick(2, 15), "latency_bound_s": BOUND_S,
        },
    }  # fmt: skip


def arithmetic(setting: Setting) -> dict[str, Any]:
    """Mixed requests drawn without any server: what batching them gains at most."""
    engine = Engine(model_directory(setting.model), lives_long=True)
    pipeline = make_pipeline(setting.model)
    requests = mixed_requests(2)
    return compare(
        Case("eight mixed requests, no server", "diffusers", len(requests), "images"),
        clocked(lambda: engine.draw(requests)),
        clocked(lambda: draw_singly(pipeline, requests)),
        3,
    )


def below(cases: list[dict[str, Any]], gain: float) -> list[str]:
    """Why bars were not reached, a sentence each."""
    return [
        f"{c['case']}, {c['peer']}: {c['ratio']['median']:.2f} of {c['bar']}. The processes of "
        "either side keep all cores drawing; without a server, eight mixed requests in one batch "
        f"are drawn {gain:.2f} times as fast as one by one, and more than that no server gains."
        for c in cases
        if not c.get("reached", True)
    ]


class Bench:
    """Three sides, of which one is asked at a time."""

    def __init__(
        self, bundles: dict[str, str], storage: Path, answers: Path, replicas: int, model: str
    ):
        self._bundles, self._storage, self._answers = bundles, storage, answers
        self._replicas, self._model, self.callers = replicas, model, CALLERS_A_REPLICA * replicas
        self.turns: dict[str, list[dict[str, Any]]] = {"ours": [], "serve_batch": [], "fastapi": []}
        self.opened: dict[str, list[dict[str, Any]]] = {}
        self._first_s: list[float] = []
        self._whole_s: list[float] = []

    def deploy(self) -> None:
        """Ours and Ray Serve's peer at once; wait until they and FastAPI's processes are warm."""
        ray.serve.start(http_options={"port": PORT})
        targets = [
            RunTarget(self._ours(), "ours"),
            RunTarget(serve_batch.build(self._bundles, self._replicas), "serve_batch", "/peer"),
        ]
        ray.serve.run_many(targets)
        for name, url in URLS.items():
            # Which of FastAPI's processes answers is the system's choice, not a router's.
            more = 4 if name == "fastapi" and self._replicas > 1 else 1
            warm_up(url, more * self._replicas)

    def round(self, number: int, seconds: float) -> None:
        """Every side once, each beginning in its turn."""
        names = list(self.turns)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            words = ["--callers", str(self.callers)]
            if name == "ours":
                words += ["--out", str(self._answers)]
            self.turns[name].append(call(URLS[name], seconds, *words))
            print(name, self.turns[name][-1], file=sys.stderr)

    def open_loop(self, seconds: float) -> None:
        """Each side at rising rates until its p95 is above the bound."""
        best = float(np.median([turn["images_per_s"] for turn in self.turns["ours"]]))
        for name in self.turns:
            self.opened[name] = []
            for share in SHARES:
                found = call(URLS[name], seconds, "--rate", str(share * best))
                self.opened[name].append(found)
                print(name, found, file=sys.stderr)
                if found["p95_s"] > BOUND_S or found["failures"]:
                    break

    def previews(self, times: int) -> None:
        """Seconds to a first preview of three and to the image, of ours, alone."""
        for k in range(times):
            first_s, whole_s = stream(URLS["ours"], question(k, 3))
            self._first_s.append(first_s)
            self._whole_s.append(whole_s)

    def cases(self) -> list[dict[str, Any]]:
        """Throughput and tail against either peer at saturation, and the rest of what there is."""
        found, ours = [], self.turns["ours"]
        for peer, bar in BARS.items():
            theirs = self.turns[peer]
            rates, tails = (
                summary(_each(ours, key), _each(theirs, key), least)
                for key, least in (("images_per_s", bar), ("per_p95_s", 1.0))
            )
            what = f"{self.callers} callers, {len(SUBJECTS)} subjects"
            about = {"peer": peer, "pairs": len(ours)}
            found += [
                {"case": f"{what}: throughput", "unit": "images/s", "bar": bar}
                | about | rates,
                {"case": f"{what}: 1 / p95 latency", "unit": "1/s", "bar": 1.0}
                | about | tails,
            ]  # fmt: skip
        for peer in BARS if self.opened else ():
            found.append(within_bound(peer, self.opened["ours"], self.opened[peer]))
        for name, seconds in (("first preview", self._first_s), ("whole image", self._whole_s)):
            if seconds:
                found.append(
                    {
                        "case": f"one caller: {name}", "peer": "the clock", "unit": "s",
                        "seconds": quantiles(seconds),
                    }
                )  # fmt: skip
        return found

    def _ours(self) -> ray.serve.Application:
        given = {
            "storage": {"uri": str(self._storage)},
            "models": {"base": self._model},
            "replicas": {"minimum": self._replicas, "maximum": self._replicas},
        }
        return build(ServeConfig.model_validate(given))


def _each(turns: list[dict[str, Any]], key: str) -> list[float]:
    return [1 / turn["p95_s"] if key == "per_p95_s" else turn[key] for turn in turns]


def within_bound(
    peer: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The highest throughput of either side whose p95 was below the bound, and their ratio.

    A side that was above it at the lowest rate has none, which is below any.
    """
    rates = [
        max(
            (t["images_per_s"] for t in side if t["p95_s"] <= BOUND_S and not t["failures"]),
            default=0.0,
        )
        for side in (ours, theirs)
    ]
    record = {
        "case": f"throughput at p95 below {BOUND_S:.0f} s", "peer": peer, "unit": "images/s",
        "highest": {"ours": rates[0], "theirs": rates[1]}, "pairs": 1,
    }  # fmt: skip
    lowest = min(turn["asked_per_s"] for turn in theirs)
    return {
        **record,
        "ratio": quantiles([rates[0] / (rates[1] or lowest)]),
        "at_least": not rates[1],
    }


def call(url: str, seconds: float, *words: str) -> dict[str, Any]:
    """What callers found."""
    command = [
        sys.executable, "-m", "benchmarks.callers", "--url", url,
        "--seconds", str(seconds), *words,
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def warm_up(url: str, times: int, limit_s: float = 120.0) -> None:
    """Wait until every subject has been drawn once by each replica, or nearly so."""
    for name in SUBJECTS * times:
        body = {**question(0, 0), "model": name, "num_inference_steps": 2}
        deadline = time.monotonic() + limit_s
        while True:
            try:
                ask(url, body)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)


def stream(url: str, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first of three previews, and to the image."""
    request = urllib.request.Request(
        url,
        json.dumps({**body, "stream": True, "partial_images": 3}).encode(),
        {"Content-Type": "application/json"},
    )
    began, first_s = time.monotonic(), 0.0
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if b"partial_image" in line and not first_s:
                first_s = time.monotonic() - began
    return first_s, time.monotonic() - began
