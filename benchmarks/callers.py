"""Callers of an endpoint, in a process of their own; prints what they found as JSON.

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


def question(caller: int, turn: int) -> dict[str, Any]:
    """What a caller asks in a turn: the same for every endpoint."""
    k = caller + turn
    return {
        "model": SUBJECTS[caller % 4],
        "prompt": f"a red {NOUNS[k % 4]} on the beach",
        "seed": 1000 * caller + turn,
        "num_inference_steps": STEPS[k % 4],
        "guidance_scale": GUIDANCE[(k // 4) % 4],
    }


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The endpoint's answer; raises OSError, of which HTTPError is one."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


class Callers:
    """They share one list of latencies."""

    def __init__(self, url: str, out: Path | None) -> None:
        self._url, self._out = url, out
        self._lock = threading.Lock()
        self._latencies_s: list[float] = []
        self._failures = 0
        self._last = time.monotonic()

    def closed(self, callers: int, seconds: float) -> dict[str, Any]:
        """So many callers, for so long; what is under way at the end counts as well."""
        began = time.monotonic()

        def call(caller: int) -> None:
            for turn in itertools.count(1):
                if time.monotonic() - began > seconds:
                    return
                self._one(question(caller, turn), time.monotonic())

        self._run([threading.Thread(target=call, args=(k,)) for k in range(callers)])
        return self._found(began)

    def open(self, rate: float, seconds: float) -> dict[str, Any]:
        """So many images a second, on average, for so long."""
        began, threads = time.monotonic(), []
        for number, at in enumerate(arrivals(rate, seconds)):
            time.sleep(max(0.0, began + at - time.monotonic()))
            body = question(number % 16, 1 + number // 16)
            threads.append(threading.Thread(target=self._one, args=(body, began + at)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        return self._found(began) | {"asked_per_s": round(rate, 3)}

    def _run(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, body: dict[str, Any], due: float) -> None:
        try:
            answer = ask(self._url, body)
        except OSError:
            with self._lock:
                self._failures += 1
            time.sleep(0.2)
            return
        with self._lock:
            self._last = time.monotonic()
            self._latencies_s.append(self._last - due)
        if self._out:
            text = json.dumps({"asked": body, "image": answer["data"][0]})
            (self._out / f"{uuid.uuid4().hex}.json").write_text(text)

    def _found(self, began: float) -> dict[str, Any]:
        done = sorted(self._latencies_s)
        return {
            "images": len(done),
            "failures": self._failures,
            "images_per_s": round(len(done) / (self._last - began), 4),
            "p50_s": round(at_share(done, 0.5), 3),
            "p95_s": round(at_share(done, 0.95), 3),
        }


def arrivals(rate: float, seconds: float, seed: int = 7) -> list[float]:
    """Seconds at which a Poisson process of `rate` events a second has them, below `seconds`."""
    draw, at, found = random.Random(seed), 0.0, list[float]()
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(at)
    return found


def at_share(ascending: list[float], share: float) -> float:
    """The value that `share` of them do not exceed; no number if there are none."""
    if not ascending:
        return float("nan")
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def main() -> None:
    """Ask, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rate", type=float, help="images a second; none: the closed loop")
    parser.add_argument("--out", type=Path, help="folder to keep answers in")
    given = parser.parse_args()
    callers = Callers(given.url, given.out)
    if given.rate:
        print(json.dumps(callers.open(given.rate, given.seconds)))
    else:
        print(json.dumps(callers.closed(given.callers, given.seconds)))


if __name__ == "__main__":
    main()
