"""Callers of an endpoint, in a process of their own; prints their rates and latencies as JSON.

    python -m benchmarks.callers --url URL --seconds 30 --callers 16
    python -m benchmarks.callers --url URL --seconds 30 --rate 4

Closed loop: each caller asks for one image after the other. Open loop: images are asked for by
a Poisson process whether or not earlier ones have come, and a latency counts from when it was
due. Steps, guidance and seed differ from request to request, the subject too.
"""

import argparse
import itertools
import json
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

GENERATE = "/v1/images/generations"
SUBJECTS = tuple(f"subject-{k}" for k in range(4))
STEPS, GUIDANCE = (15, 20, 25, 30), (2.0, 3.0, 5.0, 7.5)
NOUNS = ("robot", "car", "teapot", "dog")
TIMEOUT_S = 120.0


def make_request_body(caller: int, turn: int) -> dict[str, Any]:
    """The request of a caller in a turn: the same for every endpoint."""
    k = caller + turn
    return {
        "model": SUBJECTS[caller % 4],
        "prompt": f"a red {NOUNS[k % 4]} on the beach",
        "seed": 1000 * caller + turn,
        "num_inference_steps": STEPS[k % 4],
        "guidance_scale": GUIDANCE[(k // 4) % 4],
    }


def post_json_request(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a request and return the response; raises OSError, HTTPError included."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        answer_json: dict[str, Any] = json.load(response)
    return answer_json


class LoadGenerator:
    """Threads that send requests and share one list of latencies."""

    def __init__(self, url: str, out: Path | None) -> None:
        self._url, self._out = url, out
        self._lock = threading.Lock()
        self._latencies_s: list[float] = []
        self._failures = 0
        self._last_image_s = time.monotonic()

    def run_closed_loop(self, callers: int, seconds: float) -> dict[str, Any]:
        """So many callers, for so long; what is under way at the end counts as well."""
        start_s = time.monotonic()

        def run_caller(caller: int) -> None:
            for request_index in itertools.count(1):
                if time.monotonic() - start_s > seconds:
                    return
                self._time_request(make_request_body(caller, request_index), time.monotonic())

        self._run_threads([threading.Thread(target=run_caller, args=(k,)) for k in range(callers)])
        return self._summarize_latencies(start_s)

    def run_open_loop(self, rate: float, seconds: float) -> dict[str, Any]:
        """So many images a second, on average, for so long."""
        start_s, threads = time.monotonic(), []
        for request_index, arrival_offset_s in enumerate(sample_arrivals(rate, seconds)):
            time.sleep(max(0.0, start_s + arrival_offset_s - time.monotonic()))
            request_body = make_request_body(request_index % 16, 1 + request_index // 16)
            threads.append(
                threading.Thread(
                    target=self._time_request, args=(request_body, start_s + arrival_offset_s)
                )
            )
            threads[-1].start()
        for thread in threads:
            thread.join()
        return self._summarize_latencies(start_s) | {"asked_per_s": round(rate, 3)}

    def _run_threads(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _time_request(self, body: dict[str, Any], due_s: float) -> None:
        try:
            answer_json = post_json_request(self._url, body)
        except OSError:
            with self._lock:
                self._failures += 1
            time.sleep(0.2)
            return
        with self._lock:
            self._last_image_s = time.monotonic()
            self._latencies_s.append(self._last_image_s - due_s)
        if self._out:
            answer_text = json.dumps({"asked": body, "image": answer_json["data"][0]})
            (self._out / f"{uuid.uuid4().hex}.json").write_text(answer_text)

    def _summarize_latencies(self, start_s: float) -> dict[str, Any]:
        latencies_s = sorted(self._latencies_s)
        return {
            "images": len(latencies_s),
            "failures": self._failures,
            "images_per_s": round(len(latencies_s) / (self._last_image_s - start_s), 4),
            "p50_s": round(compute_quantile(latencies_s, 0.5), 3),
            "p95_s": round(compute_quantile(latencies_s, 0.95), 3),
        }


def sample_arrivals(rate: float, seconds: float, seed: int = 7) -> list[float]:
    """Seconds at which a Poisson process of `rate` events a second has them, below `seconds`."""
    rng, arrival_s, arrivals_s = random.Random(seed), 0.0, list[float]()
    while (arrival_s := arrival_s + rng.expovariate(rate)) < seconds:
        arrivals_s.append(arrival_s)
    return arrivals_s


def compute_quantile(ascending: list[float], share: float) -> float:
    """The value that `share` of them do not exceed; no number if there are none."""
    if not ascending:
        return float("nan")
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def main() -> None:
    """Run the callers and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rate", type=float, help="images a second; none: the closed loop")
    parser.add_argument("--out", type=Path, help="folder to keep answers in")
    arguments = parser.parse_args()
    load_generator = LoadGenerator(arguments.url, arguments.out)
    if arguments.rate:
        print(json.dumps(load_generator.run_open_loop(arguments.rate, arguments.seconds)))
    else:
        print(json.dumps(load_generator.run_closed_loop(arguments.callers, arguments.seconds)))


if __name__ == "__main__":
    main()
