"""`dreambooth serve` as a process, and OpenAI's own client against it."""

import base64
import contextlib
import io
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from PIL import Image

from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.runs import delete_run
from dreambooth_ray.storage import manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run
from tests.integration.conftest import kill_tree, start_dreambooth

QUICK = {"num_inference_steps": 4, "seed": 3}


@dataclass(frozen=True)
class Endpoint:
    """A served toy model."""

    address: str
    storage: Path
    client: openai.OpenAI


def wait_for_address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.fullmatch(r"\s*(http://\S+)\s*", line):
            return match.group(1)
    raise AssertionError(process.communicate()[1])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("serve")
    process = start_dreambooth("serve", "--port", "0", cwd=folder)
    try:
        address = wait_for_address(process)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        yield Endpoint(address, folder / "out", client)
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        kill_tree(process)


def image(data: str | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_openai_client_lists_generates_and_edits(endpoint: Endpoint, tile: Image.Image) -> None:
    client = endpoint.client
    assert [m.id for m in client.models.list()] == ["toyworld"]
    images = client.images.generate(model="toyworld", prompt="a red robot", n=2, extra_body=QUICK)
    assert images.data is not None
    assert [i.receipt["seed"] for i in images.data] == [3, 4]  # type: ignore[attr-defined]
    assert image(images.data[0].b64_json).size == (64, 64)
    out = io.BytesIO()
    tile.save(out, "PNG")
    edited = client.images.edit(
        model="toyworld", prompt="a blue robot", image=("a.png", out.getvalue()), extra_body=QUICK
    )
    assert edited.data is not None
    assert image(edited.data[0].b64_json).size == (64, 64)


def test_the_openai_client_sends_what_it_likes_and_reads_by_url(endpoint: Endpoint) -> None:
    """The values that people's programs send along; the URL is read without a key."""
    client = endpoint.client
    by_url = client.images.generate(
        model="toyworld", prompt="a red robot", response_format="url", quality="auto",
        background="auto", moderation="auto", user="somebody", style="vivid", n=None,
        extra_body=QUICK,
    )  # fmt: skip
    by_value = client.images.generate(model="toyworld", prompt="a red robot", extra_body=QUICK)
    assert by_url.data is not None
    assert by_value.data is not None
    url = by_url.data[0].url
    assert url is not None
    assert url.startswith(f"{endpoint.address}/v1/images/files/")
    with urllib.request.urlopen(url) as answer:
        data = answer.read()
    assert base64.b64encode(data).decode() == by_value.data[0].b64_json
    forged = urllib.request.Request(url + "0", method="HEAD")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(forged)
    assert refused.value.code == 403


def test_the_openai_client_with_the_wrong_base_url_is_told(endpoint: Endpoint) -> None:
    client = openai.OpenAI(base_url=endpoint.address, api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match=re.escape(f"{endpoint.address}/v1")):
        client.images.generate(prompt="x")
    with pytest.raises(openai.NotFoundError):
        endpoint.client.chat.completions.create(model="toyworld", messages=[])
    head = urllib.request.Request(f"{endpoint.address}/healthz", method="HEAD")
    with urllib.request.urlopen(head) as answer:
        assert (answer.status, answer.read()) == (200, b"")


def test_a_second_endpoint_on_the_port_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    port = endpoint.address.rpartition(":")[2]
    process = start_dreambooth("serve", "--port", port, cwd=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith(f"error: port={port} is in use at 127.0.0.1")
    assert errors.count("\n") == 1


def test_the_openai_client_streams_three_partial_images(endpoint: Endpoint) -> None:
    stream = endpoint.client.images.generate(
        model="toyworld", prompt="a red robot", stream=True, partial_images=3,
        extra_body=QUICK | {"num_inference_steps": 8},
    )  # fmt: skip
    kinds = [event.type for event in stream]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]


def test_the_openai_client_sees_errors_of_each_class(endpoint: Endpoint) -> None:
    client = endpoint.client
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="x", quality="hd")
    assert (refused.value.param, refused.value.code) == ("quality", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="nobody", prompt="x")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError) as short:
        client.images.generate(prompt="x", extra_body={"deadline_s": 0.001})
    assert (short.value.param, short.value.code) == ("deadline_s", "deadline_too_short")


def test_the_openai_client_sees_that_others_are_before_it(endpoint: Endpoint) -> None:
    client = endpoint.client
    long = {"prompt": "a red robot", "n": 4, "num_inference_steps": 150}
    job = cast("dict[str, str]", client.post("/jobs", cast_to=object, body=long))
    deadline = time.monotonic() + 60
    while not read_metric(endpoint.address, "dreambooth_in_hand"):
        assert time.monotonic() < deadline
    with pytest.raises(openai.InternalServerError) as late:
        client.images.generate(prompt="x", extra_body={"num_inference_steps": 1, "deadline_s": 1})
    assert (late.value.status_code, late.value.code) == (503, "deadline_unreachable")
    assert int(late.value.response.headers["retry-after"]) >= 1
    client.delete(f"/jobs/{job['id']}", cast_to=object)
    while read_metric(endpoint.address, "dreambooth_in_hand"):
        assert time.monotonic() < deadline


def test_a_size_that_takes_too_long_is_refused_at_once(endpoint: Endpoint) -> None:
    client = endpoint.client
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="x", size="1024x1024", extra_body={"deadline_s": 20})
    assert (refused.value.param, refused.value.code) == ("deadline_s", "deadline_too_short")
    assert "smaller size" in refused.value.message


def test_small_images_do_not_wait_for_a_large_one(endpoint: Endpoint) -> None:
    client = endpoint.client
    large = {"prompt": "a red robot", "size": "256x256", "num_inference_steps": 40}
    job = cast("dict[str, str]", client.post("/jobs", cast_to=object, body=large))
    deadline = time.monotonic() + 60
    while read_job(client, job["id"])["step"] == 0:
        assert time.monotonic() < deadline
    small = client.images.generate(prompt="a red robot", extra_body={"num_inference_steps": 25})
    assert small.data is not None
    state = read_job(client, job["id"])
    assert state["status"] == "running"
    assert state["step"] < 30
    client.delete(f"/jobs/{job['id']}", cast_to=object)
    while read_metric(endpoint.address, "dreambooth_in_hand"):
        assert time.monotonic() < deadline


def read_job(client: openai.OpenAI, job_id: str) -> "dict[str, Any]":
    return cast("dict[str, Any]", client.get(f"/jobs/{job_id}", cast_to=object))


def test_a_subject_is_served_once_committed_and_refused_once_removed(endpoint: Endpoint) -> None:
    client, store = endpoint.client, Store(str(endpoint.storage)).sub("runs/my-dog")
    # An unknown name is remembered, and the commit is seen all the same.
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("my-dog")
    manifest.upload_folder_with_manifest(
        store, "bundle", model_directory("toyworld"), {"kind": "bundle"}
    )
    publish_run(store)
    assert [m.id for m in client.models.list()] == ["toyworld", "my-dog"]
    first = client.models.list(extra_query={"limit": 1})
    assert ([m.id for m in first.data], first.has_more) == (["toyworld"], True)  # type: ignore[attr-defined]
    last_id = first.last_id  # type: ignore[attr-defined]
    rest = client.models.list(extra_query={"limit": 1, "after": last_id})
    assert ([m.id for m in rest.data], rest.has_more) == (["my-dog"], False)  # type: ignore[attr-defined]
    wait_until_found(client, "my-dog")
    images = client.images.generate(model="my-dog", prompt="a red robot", extra_body=QUICK)
    assert images.data is not None
    plain = client.images.generate(model="toyworld", prompt="a red robot", extra_body=QUICK)
    assert plain.data is not None
    # The same weights under another name.
    assert image(images.data[0].b64_json).tobytes() == image(plain.data[0].b64_json).tobytes()
    delete_run(store)
    assert [m.id for m in client.models.list()] == ["toyworld"]
    wait_until_lost(client, "my-dog")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="my-dog", prompt="a red robot", extra_body=QUICK)


@pytest.mark.fault
def test_a_subject_whose_files_are_removed_by_hand_is_refused(endpoint: Endpoint) -> None:
    client, store = endpoint.client, Store(str(endpoint.storage)).sub("runs/my-cat")
    manifest.upload_folder_with_manifest(
        store, "bundle", model_directory("toyworld"), {"kind": "bundle"}
    )
    publish_run(store)
    wait_until_found(client, "my-cat")
    shutil.rmtree(endpoint.storage / "runs/my-cat")
    wait_until_lost(client, "my-cat")


def wait_until_found(client: openai.OpenAI, model: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.models.retrieve(model)
            return
        except openai.NotFoundError:
            assert time.monotonic() < deadline


def wait_until_lost(client: openai.OpenAI, model: str) -> None:
    deadline = time.monotonic() + 120
    with contextlib.suppress(openai.NotFoundError):
        while client.models.retrieve(model):
            assert time.monotonic() < deadline


def test_a_reader_who_goes_away_frees_the_place(endpoint: Endpoint) -> None:
    before = read_metric(endpoint.address, "dreambooth_images_total")
    stream = endpoint.client.images.generate(
        prompt="a red robot", stream=True, partial_images=3,
        extra_body={"num_inference_steps": 150},
    )  # fmt: skip
    next(iter(stream))
    stream.response.close()
    deadline = time.monotonic() + 60
    while read_metric(endpoint.address, "dreambooth_in_hand"):
        assert time.monotonic() < deadline
    assert read_metric(endpoint.address, "dreambooth_images_total") == before


def read_metric(address: str, name: str) -> float:
    """Sum over the labels of a metric."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    metric_lines = [line for line in lines if re.match(rf"{name}[ {{]", line)]
    return sum(float(line.rpartition(" ")[2]) for line in metric_lines)
