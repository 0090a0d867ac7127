"""What the callers of `benchmarks.serve_load` do, for locust in an environment of its own.

Each caller asks for one picture after the other; steps, guidance and seed differ from request to
request, the subject from caller to caller. Answers are kept for checking in CALLERS_OUT.
"""

import itertools
import json
import os
import uuid
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, task

SUBJECTS = [f"subject-{k}" for k in range(4)]
STEPS, GUIDANCE = (15, 20, 25, 30), (2.0, 3.0, 5.0, 7.5)
NOUNS = ("robot", "car", "teapot", "dog")
_numbers = itertools.count()


class Caller(HttpUser):  # type: ignore[misc]
    wait_time = constant(0)

    def on_start(self) -> None:
        self.number = next(_numbers)
        self.turn = 0

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        k, self.turn = self.number + self.turn, self.turn + 1
        body = {
            "model": SUBJECTS[self.number % 4],
            "prompt": f"a red {NOUNS[k % 4]} on the beach",
            "seed": 1000 * self.number + self.turn,
            "num_inference_steps": STEPS[k % 4],
            "guidance_scale": GUIDANCE[(k // 4) % 4],
        }
        with self.client.post("/v1/images/generations", json=body, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(str(answer.status_code))
                return
            self.keep(body, answer.json())

    def keep(self, body: dict[str, Any], answer: dict[str, Any]) -> None:
        folder = os.environ.get("CALLERS_OUT")
        if folder:
            text = json.dumps({"asked": body, "image": answer["data"][0]})
            (Path(folder) / f"{uuid.uuid4().hex}.json").write_text(text)
