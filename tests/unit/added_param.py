"""A program that adds a field to SamplingParams and finds it wherever images are sampled.

Run by test_sampling_params.py, in a process of its own: what imports SamplingParams must see the
field from the start.
"""

import base64
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from dreambooth_ray.config import sampling_params

VALUE, DEFAULT = 7, 3


class AddedParam(sampling_params.SamplingParams):
    added: int = Field(DEFAULT, ge=1, description="a parameter that no consumer names")


def check_command_line() -> None:
    from typer.testing import CliRunner

    from dreambooth_ray import generation
    from dreambooth_ray.cli.main import app

    sampled: list[Any] = []

    class RecordingEngine:
        def __init__(self, directory: Path, **options: Any) -> None: ...

        def sample(self, requests: list[Any], on_progress: Any) -> list[Any]:
            sampled.extend(requests)
            raise KeyboardInterrupt

    generation.Engine = RecordingEngine  # type: ignore[assignment,misc]
    with tempfile.TemporaryDirectory() as out:
        arguments = ["generate", "toyworld", "--prompt", "x", "--out", out, "--added", str(VALUE)]
        CliRunner().invoke(app, arguments)
    assert [r.params.added for r in sampled] == [VALUE]
    assert sampled[0].receipt()["added"] == VALUE


def check_configuration() -> None:
    from dreambooth_ray.config.load import dump_config, parse_config
    from dreambooth_ray.data.image_shapes import ImageShape
    from dreambooth_ray.models.model_directory import model_directory
    from dreambooth_ray.pipeline import plan_priors
    from dreambooth_ray.preparation import PreparedRun
    from dreambooth_ray.priors.prior_worker import PriorWorker
    from dreambooth_ray.training.callbacks.samples import make_sample_requests

    text, directory = "subject: {photos: p, class_noun: robot}", model_directory("toyworld")
    overrides = [f"prior.added={VALUE}", f"sample.added={VALUE}"]
    config = parse_config(text, "x", overrides)
    assert parse_config(dump_config(config), "x", []) == config
    spec, default_spec = (
        plan_priors(PreparedRun(c, directory), 4).spec
        for c in (config, parse_config(text, "x", []))
    )
    assert spec.digest != default_spec.digest
    assert "added" not in default_spec.as_json()
    worker = object.__new__(PriorWorker)
    worker._spec = spec
    shape = ImageShape(64, 64)
    assert worker._build_request(0, shape).params.added == VALUE  # type: ignore[attr-defined]
    requests = make_sample_requests(config)
    assert [r.params.added for r in requests] == [VALUE]  # type: ignore[attr-defined]


def check_evaluation() -> None:
    from dreambooth_ray.evaluation.protocol import (
        EvaluationPrompt,
        EvaluationProtocol,
        EvaluationSpec,
        load_protocol,
    )
    from dreambooth_ray.evaluation.sample_actor import build_sampling_request

    default = load_protocol("toyworld")
    protocol = EvaluationProtocol.model_validate({**default.model_dump(), "added": VALUE})
    request = build_sampling_request(EvaluationPrompt("class", "a", "a", 0), protocol, None)
    assert request.params.added == VALUE  # type: ignore[attr-defined]
    specs = [EvaluationSpec(p, "m", "sks", "robot", (), None) for p in (protocol, default)]
    assert specs[0].digest != specs[1].digest
    assert "added" not in str(specs[1].as_json())


class RecordingReplica:
    """Builds the engine's request of each task, and answers with a grey image."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def sample(self, artifact: Any, sample_task: Any) -> AsyncIterator[Any]:
        from serve.replica import _build_request
        from serve.replica_messages import Finished, Pixels

        self.requests.append(_build_request(sample_task, ()))
        yield Finished(
            Pixels.from_pil_image(Image.new("RGB", (64, 64))), "0" * 64, sample_task.params
        )

    async def report_status(self, backlog_steps: int = 0) -> Any:
        from serve.replica_messages import ReplicaStatus

        return ReplicaStatus("one", 100.0, 0, 0, 0, 0, 0)


def check_endpoint() -> None:
    from starlette.testclient import TestClient

    from dreambooth_ray.config.serving import ServeConfig
    from serve.deployment import build_app_state
    from serve.gateway import create_app
    from serve.image_files import read_receipt
    from tests.unit.serve.conftest import Handle

    replica = RecordingReplica()
    with tempfile.TemporaryDirectory() as storage:
        settings = {"storage": {"uri": storage}, "safety": {"prompts": False}}
        config = ServeConfig.model_validate(settings)
        app = create_app(build_app_state(config, {"Replica": Handle(replica)}))  # type: ignore[arg-type]
        with TestClient(app) as client:
            body = {"prompt": "x", "added": VALUE}
            start = {"image": ("a.png", _make_png())}
            answers = [
                client.post("/v1/images/generations", json=body),
                client.post("/v1/images/edits", data={**body, "size": "64x64"}, files=start),
            ]
            refused = client.post("/v1/images/generations", json={**body, "added": 0})
            job = client.post("/v1/jobs", json=body).json()
            while (state := client.get(f"/v1/jobs/{job['id']}").json())["status"] != "completed":
                assert state["status"] in ("queued", "running"), state
            schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert refused.json()["error"]["param"] == "added"
    for answer in answers:
        image = answer.json()["data"][0]
        assert image["receipt"]["added"] == VALUE
        assert read_receipt(base64.b64decode(image["b64_json"])).added == VALUE  # type: ignore[union-attr]
    assert state["receipts"][0]["added"] == VALUE
    assert [r.params.added for r in replica.requests] == [VALUE] * 3
    for name in ("GenerationRequest", "Receipt"):
        assert "added" in schemas[name]["properties"], name


def _make_png() -> bytes:
    import io

    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "PNG")
    return data.getvalue()


def main() -> None:
    sampling_params.SamplingParams = AddedParam  # type: ignore[misc]
    check_command_line()
    check_configuration()
    check_evaluation()
    check_endpoint()


if __name__ == "__main__":
    main()
