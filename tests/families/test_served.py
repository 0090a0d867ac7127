"""Two subjects of a family at the endpoint: one batch, and receipts that repeat their images."""

import base64
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from benchmarks.callers import SUBJECTS
from benchmarks.served_subjects import make_subjects
from dreambooth_ray.config.adapter_mix import AdapterMix
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.sampling.denoiser import Denoiser, ForwardRow
from dreambooth_ray.sampling.engine import Engine
from serve.replica import Replica
from tests.families.proven_families import TRAINED_MODELS
from tests.families.tiny_models import build_tiny
from tests.integration.site import Site

pytestmark = pytest.mark.fault
# Alike in nothing but model and size: the longer one is in step when the shorter one comes.
_SIZE = {"size": "64x64"}
FIRST: dict[str, Any] = _SIZE | {"num_inference_steps": 40, "guidance_scale": 3.0, "seed": 5}
SECOND: dict[str, Any] = _SIZE | {"num_inference_steps": 6, "guidance_scale": 5.0, "seed": 8}
PROMPTS = "a photo of sks robot", "a cat by a house in the rain at night, in the style of a poster"


@pytest.fixture(scope="module", params=TRAINED_MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("served")
    directory, storage = build_tiny(family, folder / "model"), str(folder / "out")
    make_subjects(storage, str(directory))
    config = ServeConfig.model_validate(
        {"models": {"tiny": str(directory)}, "storage": {"uri": storage}}
    )
    replica = Replica(config)
    with Site(config, replica) as site:
        yield openai.OpenAI(base_url=f"{site.address}/v1", api_key="none", max_retries=0)
    replica.__del__()


def draw(client: openai.OpenAI, subject: str, prompt: str, settings: dict[str, Any]) -> Any:
    images = client.images.generate(model=subject, prompt=prompt, extra_body=settings)
    assert images.data is not None
    return images.data[0]


def pixels(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json)))).astype(int)


def test_two_subjects_share_a_forward(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[set[AdapterMix]] = []
    is_begun, is_joined = threading.Event(), threading.Event()
    original, submit = Denoiser.__call__, Engine.submit

    def record(self: Denoiser, rows: list[ForwardRow]) -> Any:
        forwards.append({row.adapters for row in rows})
        # A tiny model is done before another caller is heard, unless its first step waits.
        is_begun.set()
        is_joined.wait(60)
        return original(self, rows)

    def join(self: Engine, *args: Any, **options: Any) -> Any:
        handle = submit(self, *args, **options)
        if is_begun.is_set():
            is_joined.set()
        return handle

    alone = [
        draw(client, subject, prompt, settings)
        for subject, prompt, settings in zip(SUBJECTS, PROMPTS, (FIRST, SECOND), strict=False)
    ]
    monkeypatch.setattr(Denoiser, "__call__", record)
    monkeypatch.setattr(Engine, "submit", join)
    together: dict[int, Any] = {}

    def call(index: int, settings: dict[str, Any]) -> None:
        together[index] = draw(client, SUBJECTS[index], PROMPTS[index], settings)

    first = threading.Thread(target=call, args=(0, FIRST))
    first.start()
    assert is_begun.wait(60)
    call(1, SECOND)
    first.join()
    assert any(len(adapters) == 2 and () not in adapters for adapters in forwards)
    for index, image in enumerate(alone):
        assert np.abs(pixels(image) - pixels(together[index])).max() <= 1
    assert np.abs(pixels(alone[0]) - pixels(alone[1])).max() > 1


def test_a_receipt_repeats_its_image(client: openai.OpenAI) -> None:
    image = draw(client, SUBJECTS[1], PROMPTS[0], SECOND)
    receipt = image.receipt
    assert receipt["model"].split("@")[0] == SUBJECTS[1]
    assert receipt["solver"]
    named = {"seed", "negative_prompt", *SECOND} - _SIZE.keys()
    settings = {name: receipt[name] for name in named} | _SIZE
    again = draw(client, receipt["model"], receipt["prompt"], settings)
    assert again.b64_json == image.b64_json or (pixels(again) == pixels(image)).all()
    assert again.receipt == receipt


def test_a_prompt_is_taken_whole_or_refused(client: openai.OpenAI, family: str) -> None:
    if family in ("sd15", "sdxl"):  # in windows
        long, longer = (draw(client, SUBJECTS[0], "word " * count, SECOND) for count in (400, 401))
        assert (pixels(long) != pixels(longer)).any()
        return
    with pytest.raises(openai.BadRequestError, match="tokens"):
        draw(client, SUBJECTS[0], "word " * 400, SECOND)
