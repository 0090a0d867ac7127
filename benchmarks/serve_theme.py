"""Theme `serve`: our endpoint against `@serve.batch` and FastAPI around the diffusers pipeline.

Every side has the same processes, one thread each, the same subjects, callers, requests and
seconds, in turns; callers are a process of their own. All sides are up from the start, and who has
no turn has no requests. Saturation is the closed loop of eight callers a replica, of which a smoke
profile has one; the open loop asks at shares of what saturation gave. Every image of ours, or
three in smoke profile, is then sampled alone from its receipt and compared.
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

from benchmarks import serve_batch_peer, serve_fastapi
from benchmarks.callers import GENERATE, SUBJECTS, make_request_body, post_json_request
from benchmarks.measure import (
    BenchmarkCase,
    compare_sides,
    compute_quantiles,
    make_timed,
    summarize_rates,
)
from benchmarks.receipt_image_check import compare_served_with_resampled_images
from benchmarks.sample_theme import load_diffusers_pipeline, make_mixed_requests, sample_one_by_one
from benchmarks.served_subjects import make_subjects
from benchmarks.theme import BenchmarkSettings
from cluster.session import ray_connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.models.model_directory import model_directory
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


def measure(setting: BenchmarkSettings) -> dict[str, Any]:
    """Saturation of three sides and, in full, what the open loop and a preview take."""
    torch.set_num_threads(1)
    is_full = setting.profile == "full"
    num_replicas = max(setting.workers) if is_full else 1
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        storage_folder = Path(temp_folder) / "storage"
        answers_folder = Path(temp_folder) / "answers"
        answers_folder.mkdir()
        bundles = make_subjects(str(storage_folder), setting.model)
        bench = ServeBenchmark(bundles, storage_folder, answers_folder, num_replicas, setting.model)
        with ExitStack() as stack:
            stack.enter_context(serve_fastapi.serve_pipelines(bundles, FASTAPI_PORT, num_replicas))
            stack.enter_context(ray_connection(ClusterConfig(), 2 * num_replicas, is_bare=True))
            bench.deploy_sides()
            for k in range(setting.pick(1, 3)):
                bench.run_round(k, setting.pick(2, 15))
            if is_full:
                bench.run_open_loop(15)
                bench.measure_previews(5)
        max_images = None if is_full else 3
        receipt_check = compare_served_with_resampled_images(
            answers_folder, bundles, setting.model, max_images
        )
    cases = bench.summarize_cases()
    record: dict[str, Any] = {"cases": cases}
    if is_full:
        record["arithmetic"] = measure_without_server(setting)
        record["below_the_bar"] = explain_missed_bars(
            cases, record["arithmetic"]["ratio"]["median"]
        )
    return {
        **record,
        "turns": bench.turns,
        "open_loop": bench.open_loop_records,
        "receipts": receipt_check,
        "configuration": {
            "callers": bench.callers, "replicas": num_replicas, "subjects": len(SUBJECTS),
            "batch": 8, "seconds_a_turn": setting.pick(2, 15), "latency_bound_s": BOUND_S,
        },
    }  # fmt: skip


def measure_without_server(setting: BenchmarkSettings) -> dict[str, Any]:
    """Mixed requests sampled without any server: the most that batching gains."""
    engine = Engine(model_directory(setting.model), lives_long=True)
    pipeline = load_diffusers_pipeline(setting.model)
    requests = make_mixed_requests(2)
    return compare_sides(
        BenchmarkCase("eight mixed requests, no server", "diffusers", len(requests), "images"),
        make_timed(lambda: engine.sample(requests)),
        make_timed(lambda: sample_one_by_one(pipeline, requests)),
        3,
    )


def explain_missed_bars(cases: list[dict[str, Any]], gain: float) -> list[str]:
    """Why bars were not reached, a sentence each."""
    return [
        f"{c['case']}, {c['peer']}: {c['ratio']['median']:.2f} of {c['bar']}. The processes of "
        "either side keep all cores drawing; without a server, eight mixed requests in one batch "
        f"are drawn {gain:.2f} times as fast as one by one, and more than that no server gains."
        for c in cases
        if not c.get("reached", True)
    ]


class ServeBenchmark:
    """Three sides; one has requests at a time."""

    def __init__(
        self, bundles: dict[str, str], storage: Path, answers: Path, replicas: int, model: str
    ):
        self._bundles, self._storage, self._answers = bundles, storage, answers
        self._replicas, self._model, self.callers = replicas, model, CALLERS_A_REPLICA * replicas
        self.turns: dict[str, list[dict[str, Any]]] = {"ours": [], "serve_batch": [], "fastapi": []}
        self.open_loop_records: dict[str, list[dict[str, Any]]] = {}
        self._preview_s: list[float] = []
        self._image_s: list[float] = []

    def deploy_sides(self) -> None:
        """Ours and Ray Serve's peer at once; wait until they and FastAPI's processes are warm."""
        ray.serve.start(http_options={"port": PORT})
        peer = serve_batch_peer.build(self._bundles, self._replicas)
        targets = [RunTarget(self._build_ours(), "ours"), RunTarget(peer, "serve_batch", "/peer")]
        ray.serve.run_many(targets)
        for side_name, url in URLS.items():
            # Which of FastAPI's processes answers is the system's choice, not a router's.
            warm_up_rounds = 4 if side_name == "fastapi" and self._replicas > 1 else 1
            warm_up(url, warm_up_rounds * self._replicas)

    def run_round(self, number: int, seconds: float) -> None:
        """Every side once, each beginning in its turn."""
        side_names = list(self.turns)
        first_side_index = number % len(side_names)
        for side_name in side_names[first_side_index:] + side_names[:first_side_index]:
            caller_options = ["--callers", str(self.callers)]
            if side_name == "ours":
                caller_options += ["--out", str(self._answers)]
            self.turns[side_name].append(run_callers(URLS[side_name], seconds, *caller_options))
            print(side_name, self.turns[side_name][-1], file=sys.stderr)

    def run_open_loop(self, seconds: float) -> None:
        """Each side at rising rates until its p95 is above the bound."""
        saturation_rate = float(np.median([turn["images_per_s"] for turn in self.turns["ours"]]))
        for side_name in self.turns:
            self.open_loop_records[side_name] = []
            for saturation_share in SHARES:
                open_loop_record = run_callers(
                    URLS[side_name], seconds, "--rate", str(saturation_share * saturation_rate)
                )
                self.open_loop_records[side_name].append(open_loop_record)
                print(side_name, open_loop_record, file=sys.stderr)
                if open_loop_record["p95_s"] > BOUND_S or open_loop_record["failures"]:
                    break

    def measure_previews(self, times: int) -> None:
        """Seconds to a first preview of three and to the image, of ours, alone."""
        for k in range(times):
            preview_s, image_s = time_preview_stream(URLS["ours"], make_request_body(k, 3))
            self._preview_s.append(preview_s)
            self._image_s.append(image_s)

    def summarize_cases(self) -> list[dict[str, Any]]:
        """Throughput and tail against either peer at saturation, and the rest of what there is."""
        cases, our_turns = [], self.turns["ours"]
        for peer, bar in BARS.items():
            their_turns = self.turns[peer]
            throughput_summary, tail_summary = (
                summarize_rates(_read_rates(our_turns, key), _read_rates(their_turns, key), key_bar)
                for key, key_bar in (("images_per_s", bar), ("per_p95_s", 1.0))
            )
            workload_text = f"{self.callers} callers, {len(SUBJECTS)} subjects"
            shared_case_fields = {"peer": peer, "pairs": len(our_turns)}
            cases += [
                {"case": f"{workload_text}: throughput", "unit": "images/s", "bar": bar}
                | shared_case_fields | throughput_summary,
                {"case": f"{workload_text}: 1 / p95 latency", "unit": "1/s", "bar": 1.0}
                | shared_case_fields | tail_summary,
            ]  # fmt: skip
        for peer in BARS if self.open_loop_records else ():
            cases.append(
                compare_within_latency_bound(
                    peer, self.open_loop_records["ours"], self.open_loop_records[peer]
                )
            )
        for name, seconds in (("first preview", self._preview_s), ("whole image", self._image_s)):
            if seconds:
                cases.append(
                    {
                        "case": f"one caller: {name}", "peer": "the clock", "unit": "s",
                        "seconds": compute_quantiles(seconds),
                    }
                )  # fmt: skip
        return cases

    def _build_ours(self) -> ray.serve.Application:
        serve_settings = {
            "storage": {"uri": str(self._storage)},
            "models": {"base": self._model},
            "replicas": {"minimum": self._replicas, "maximum": self._replicas},
        }
        return build(ServeConfig.model_validate(serve_settings))


def _read_rates(turns: list[dict[str, Any]], key: str) -> list[float]:
    return [1 / turn["p95_s"] if key == "per_p95_s" else turn[key] for turn in turns]


def compare_within_latency_bound(
    peer: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The highest throughput of either side whose p95 was below the bound, and their ratio.

    A side that was above it at the lowest rate has none, which is below any.
    """
    highest_rates = [
        max(
            (t["images_per_s"] for t in side if t["p95_s"] <= BOUND_S and not t["failures"]),
            default=0.0,
        )
        for side in (ours, theirs)
    ]
    record = {
        "case": f"throughput at p95 below {BOUND_S:.0f} s", "peer": peer, "unit": "images/s",
        "highest": {"ours": highest_rates[0], "theirs": highest_rates[1]}, "pairs": 1,
    }  # fmt: skip
    lowest_rate = min(turn["asked_per_s"] for turn in theirs)
    return {
        **record,
        "ratio": compute_quantiles([highest_rates[0] / (highest_rates[1] or lowest_rate)]),
        "at_least": not highest_rates[1],
    }


def run_callers(url: str, seconds: float, *words: str) -> dict[str, Any]:
    """Run callers in a process of their own; returns their record."""
    command = [
        sys.executable, "-m", "benchmarks.callers", "--url", url,
        "--seconds", str(seconds), *words,
    ]  # fmt: skip
    python_path = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    completed_process = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": python_path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    record: dict[str, Any] = json.loads(completed_process.stdout)
    return record


def warm_up(url: str, times: int, limit_s: float = 120.0) -> None:
    """Wait until every subject has been sampled once by each replica, or nearly so."""
    for subject_name in SUBJECTS * times:
        request_body = {**make_request_body(0, 0), "model": subject_name, "num_inference_steps": 2}
        deadline = time.monotonic() + limit_s
        while True:
            try:
                post_json_request(url, request_body)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)


def time_preview_stream(url: str, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds to the first of three previews, and to the image."""
    request = urllib.request.Request(
        url,
        json.dumps({**body, "stream": True, "partial_images": 3}).encode(),
        {"Content-Type": "application/json"},
    )
    start_s, preview_s = time.monotonic(), 0.0
    with urllib.request.urlopen(request, timeout=120) as response:
        for event_line in response:
            if b"partial_image" in event_line and not preview_s:
                preview_s = time.monotonic() - start_s
    return preview_s, time.monotonic() - start_s
