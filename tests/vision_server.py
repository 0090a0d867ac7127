"""A small OpenAI-compatible server on loopback, with one vision model.

It takes what OpenAI's own types take, and nothing else, and answers by a script.
"""

import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai.types import Model
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionContentPartImageParam,
    ChatCompletionContentPartTextParam,
)
from PIL import Image
from pydantic import TypeAdapter, ValidationError

_TEXT = TypeAdapter(ChatCompletionContentPartTextParam)
_IMAGE = TypeAdapter(ChatCompletionContentPartImageParam)
_JPEG = "data:image/jpeg;base64,"


@dataclass
class Answer:
    """status, headers, body: of HTTP; body "" is what OpenAI's server says with the content."""

    content: str | None = "a robot in the snow"
    finish_reason: str = "stop"
    refusal: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def encode(self) -> bytes:
        if self.body or self.status != 200:
            return self.body
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        completion = ChatCompletion.model_validate(
            {"id": "c", "created": 1, "model": "eye", "object": "chat.completion",
             "choices": [choice | {"logprobs": None}]}
        )  # fmt: skip
        return completion.model_dump_json().encode()


def error(status: int, message: str, **headers: str) -> Answer:
    """As OpenAI's servers say it."""
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
    return Answer(status=status, body=body, headers=headers)


class VisionServer:
    """Answers from construction to `close`.

    answers: of the next questions, in their order; once they are used up, `usual`
    on_question: called before each answer; key: what has to be in the header, "" for nothing
    prompts, images: what was asked; requests: "METHOD path" of each; headers: of the last one
    """

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.usual, self.key, self.models = Answer(), "", ["eye"]
        self.on_question: Callable[[], object] = lambda: None
        self.prompts: list[str] = []
        self.images: list[Image.Image] = []
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        self.requests.append(f"{method} {path}")
        self.headers = headers
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "Incorrect API key provided")
        if (method, path) == ("GET", "/v1/models"):
            rows = [Model(id=m, created=1, object="model", owned_by="me") for m in self.models]
            data = {"object": "list", "data": [row.model_dump() for row in rows]}
            return Answer(body=json.dumps(data).encode())
        if (method, path) != ("POST", "/v1/chat/completions"):
            return error(404, f"no route {path}")
        try:
            self._take_question(json.loads(body))
        except (ValidationError, ValueError, KeyError, OSError) as problem:
            return error(422, f"not what OpenAI takes: {problem!r}")
        self.on_question()
        with self._lock:
            return self.answers.pop(0) if self.answers else self.usual

    def _take_question(self, question: dict[str, Any]) -> None:
        if question.keys() != {"model", "messages"} or question["model"] not in self.models:
            raise ValueError(f"keys {sorted(question)}, model {question.get('model')!r}")
        (message,) = question["messages"]
        text, image = message["content"]
        if message["role"] != "user" or message.keys() != {"role", "content"}:
            raise ValueError("one message of a user is expected")
        prompt = _TEXT.validate_python(text)["text"]
        url = _IMAGE.validate_python(image)["image_url"]["url"]
        if text["type"] != "text" or image["type"] != "image_url" or not url.startswith(_JPEG):
            raise ValueError("a text and a JPEG are expected")
        picture = Image.open(io.BytesIO(base64.b64decode(url[len(_JPEG) :], validate=True)))
        picture.load()
        with self._lock:
            self.prompts.append(prompt)
            self.images.append(picture)

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        vision_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply()

            def do_POST(self) -> None:
                self._reply()

            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = vision_server.answer(self.command, self.path, body, headers)
                content = answer.encode()
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # who asked waits no longer
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
