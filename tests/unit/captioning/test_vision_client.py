import socket
import threading
from collections.abc import Callable, Iterator

import openai
import pytest
from PIL import Image

from dreambooth_ray.captioning.chat_answers import NoAnswerError
from dreambooth_ray.captioning.vision_client import VisionClient, to_data_url
from dreambooth_ray.errors import ConfigError
from tests.vision_server import Answer, VisionServer, error

IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))


@pytest.fixture
def make_client(server: VisionServer) -> Iterator[Callable[..., VisionClient]]:
    """Clients of the server that wait for nothing, and remember for how long they would have."""
    clients: list[VisionClient] = []

    def make(key: str = "", model: str = "eye", timeout_s: float = 5.0) -> VisionClient:
        clients.append(VisionClient(server.api, key, model, timeout_s, waits.append))
        return clients[-1]

    waits: list[float] = []
    make.waits = waits  # type: ignore[attr-defined]
    yield make
    for client in clients:
        client.close()


def test_the_question_is_what_openais_client_asks(
    server: VisionServer, make_client: Callable[..., VisionClient]
) -> None:
    assert make_client("secret").describe(IMAGE, "what is it?") == "a robot in the snow"
    ours = server.prompts, [image.size for image in server.images], server.requests
    assert ours == (["what is it?"], [(40, 30)], ["POST /v1/chat/completions"])
    assert server.headers["authorization"] == "Bearer secret"
    with openai.OpenAI(base_url=server.api, api_key="secret") as client:
        completion = client.chat.completions.create(
            model="eye",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it?"},
                        {"type": "image_url", "image_url": {"url": to_data_url(IMAGE)}},
                    ],
                }
            ],
        )
    assert completion.choices[0].message.content == "a robot in the snow"
    assert server.prompts[0] == server.prompts[1]
    assert server.images[0].tobytes() == server.images[1].tobytes()
    assert server.requests[0] == server.requests[1]


def test_no_key_is_sent_where_none_is_given(
    server: VisionServer, make_client: Callable[..., VisionClient]
) -> None:
    make_client().describe(IMAGE, "x")
    assert "authorization" not in server.headers


def test_the_only_model_is_taken_and_of_several_one_has_to_be_named(
    server: VisionServer, make_client: Callable[..., VisionClient]
) -> None:
    assert make_client(model="").model == "eye"
    server.models = ["eye", "ear"]
    with pytest.raises(ConfigError, match=r"has 2 models \(eye, ear\); choose one by --model"):
        make_client(model="")
    server.models = []
    with pytest.raises(ConfigError, match="has 0 models"):
        make_client(model="")


def test_what_passes_is_tried_again_after_a_growing_wait(
    server: VisionServer, make_client: Callable[..., VisionClient]
) -> None:
    server.answers = [Answer(""), error(429, "slow down", retry_after="7"), Answer("a robot")]
    assert make_client().describe(IMAGE, "x") == "a robot"
    server.answers = [error(503, "loading")] * 3
    with pytest.raises(NoAnswerError, match=r"^503: loading, tried 3 times$"):
        make_client().describe(IMAGE, "x")
    assert make_client.waits == [1.0, 7.0, 1.0, 4.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (Answer("", finish_reason="stop"), "the answer is empty, tried 3 times"),
        (Answer(None), "the answer is empty, tried 3 times"),
        (error(400, "this model takes no images"), "^400: this model takes no images$"),
        (error(413, "too large"), "^413: too large$"),
        (Answer(body=b"<html>hello</html>"), "no JSON.*mostly ends in /v1"),
        (Answer(body=b"[" * 100_000), "no JSON.*mostly ends in /v1"),
        (Answer(body=b'{"choices": []}'), r"no choices\[0\]\.message\.content"),
        (Answer(body=b"x" * (2**20 + 1)), "above 1,048,576 bytes"),
    ],
)
def test_an_image_without_an_answer_says_why(
    answer: Answer, match: str, server: VisionServer, make_client: Callable[..., VisionClient]
) -> None:
    server.usual = answer
    with pytest.raises(NoAnswerError, match=match):
        make_client().describe(IMAGE, "x")


@pytest.mark.parametrize(
    ("answer", "key", "match"),
    [
        (error(401, "who are you"), "", r"refuses the key \(401: who are you\); put one into"),
        (error(403, "not you"), "secret", r"refuses the key \(403: not you\); check it"),
        (error(404, "no model"), "", r"/v1/chat/completions or the model 'eye' is not there"),
        (error(308, "", location="https://x/v1"), "", "leads to https://x/v1; give that URL"),
    ],
)
def test_what_is_so_for_every_image_is_the_callers_to_mend(
    answer: Answer,
    key: str,
    match: str,
    server: VisionServer,
    make_client: Callable[..., VisionClient],
) -> None:
    server.usual = answer
    with pytest.raises(ConfigError, match=match) as raised:
        make_client(key).describe(IMAGE, "x")
    assert "secret" not in str(raised.value)
    assert len(server.requests) == 1


def test_a_server_that_does_not_answer_is_given_up(
    server: VisionServer, make_client: Callable[..., VisionClient]
) -> None:
    is_over = threading.Event()
    server.on_question = is_over.wait
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.2 s \(--timeout-s\), tried 3"):
        make_client(timeout_s=0.2).describe(IMAGE, "x")
    is_over.set()


def test_nobody_at_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = VisionClient(f"http://127.0.0.1:{port}/v1", model="eye")
    with pytest.raises(ConfigError, match=r"nothing answers there.*start the server"):
        client.describe(IMAGE, "x")
    client.close()


@pytest.mark.parametrize(
    ("api", "match"),
    [
        ("localhost:8000/v1", "no http or https URL"),
        ("ftp://host/v1", "no http or https URL"),
        ("http://", "no http or https URL"),
        ("http://host:port/v1", "is no URL"),
        ("https://me:word@host/v1", "the URL of host holds more than host and path"),
        ("https://host/v1?key=word", "the URL of host holds more than host and path"),
    ],
)
def test_a_url_that_can_not_be_used_is_refused(api: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as raised:
        VisionClient(api, model="eye")
    assert "word" not in str(raised.value)


def test_a_key_that_is_none_is_not_told() -> None:
    with pytest.raises(ConfigError, match="key holds characters that no key has") as raised:
        VisionClient("http://host/v1", "my\nkey", "eye")
    assert "my" not in str(raised.value)
