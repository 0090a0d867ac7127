"""A client of vision models: `POST /chat/completions` with text and an image, as OpenAI has it."""

import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any, NoReturn

import httpx2
from PIL import Image

from dreambooth_ray.captioning.chat_answers import (
    NoAnswerError,
    TemporaryAnswerError,
    read_caption_answer,
    read_server_error,
    read_wait_s,
)
from dreambooth_ray.errors import ConfigError

_TRIES, _FIRST_WAIT_S, _LONGEST_WAIT_S = 3, 1.0, 60.0
_CONNECT_TIMEOUT_S = 10.0
_PASSING_STATUS = {408, 409, 429, 500, 502, 503, 504}
# A caption has some hundred bytes; what a server says beside it is not endless.
_MAX_ANSWER_BYTES = 2**20


class VisionClient:
    """Asks one model. Threads may share it."""

    def __init__(
        self,
        api: str,
        key: str = "",
        model: str = "",
        timeout_s: float = 120.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """api: base URL, as `http://127.0.0.1:11434/v1`; model: "" for the only one there is

        raises: ConfigError for what is no URL or key; where nothing answers, or no single model
        """
        self.api = _check_api_url(api)
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("--key-env: the key holds characters that no key has; set it anew")
        self._wait, self._timeout_s = wait, timeout_s
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._has_key = bool(key)
        self._client = httpx2.Client(
            headers=headers, timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        )
        self.model = model or self._find_only_model()

    @property
    def is_unencrypted(self) -> bool:
        """Whether what is sent goes over a network as it is."""
        url = httpx2.URL(self.api)
        is_loopback = url.host in ("localhost", "::1") or url.host.startswith("127.")
        return url.scheme == "http" and not is_loopback

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def describe(self, image: Image.Image, prompt: str) -> str:
        """What the model says to a prompt and an image, sent as JPEG without any metadata.

        raises: NoAnswerError for this image; ConfigError for what would be so for each
        """
        chat_message_parts = [
            {"type": "text", "text": prompt},
            {"type": "image_url", "image_url": {"url": to_data_url(image)}},
        ]
        request_body = {
            "model": self.model,
            "messages": [{"role": "user", "content": chat_message_parts}],
        }
        for num_try in range(_TRIES):
            try:
                return read_caption_answer(
                    self._request_json("POST", "chat/completions", request_body)
                )
            except TemporaryAnswerError as error:
                if num_try == _TRIES - 1:
                    raise NoAnswerError(f"{error}, tried {_TRIES} times") from error
                wait_s = _FIRST_WAIT_S * 4**num_try if error.wait_s is None else error.wait_s
                self._wait(min(wait_s, _LONGEST_WAIT_S))
        raise AssertionError("the last try returns or raises")

    def _find_only_model(self) -> str:
        try:
            models_answer = self._request_json("GET", "models")
            vision_model_names = [str(row["id"]) for row in models_answer["data"]]
        except (NoAnswerError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--api={self.api!r} does not say which models it has ({error}); give --model"
            ) from error
        if len(vision_model_names) == 1:
            return vision_model_names[0]
        model_list_text = ", ".join(vision_model_names[:8]) + (
            ", ..." if len(vision_model_names) > 8 else ""
        )
        raise ConfigError(
            f"--api={self.api!r} has {len(vision_model_names)} models ({model_list_text}); choose "
            "one by --model"
        )

    def _request_json(self, method: str, path: str, body: Any = None) -> Any:
        """JSON of a good answer.

        raises: NoAnswerError, a TemporaryAnswerError where another try may help; ConfigError
        """
        url, started_s = f"{self.api}/{path}", time.monotonic()
        try:
            with self._client.stream(method, url, json=body) as response:
                response_bytes = bytearray()
                for chunk in response.iter_bytes():
                    response_bytes += chunk
                    if len(response_bytes) > _MAX_ANSWER_BYTES:
                        raise NoAnswerError(f"the answer is above {_MAX_ANSWER_BYTES:,} bytes")
                    if time.monotonic() - started_s > self._timeout_s:
                        # The client's own limit is on each wait for some bytes.
                        raise httpx2.ReadTimeout("the answer has no end")
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise ConfigError(
                f"--api={self.api!r}: nothing answers there ({error}); start the server, or "
                "correct the URL"
            ) from error
        except httpx2.TimeoutException as error:
            raise TemporaryAnswerError(
                f"no answer within {self._timeout_s:g} s (--timeout-s)"
            ) from error
        except httpx2.HTTPError as error:
            raise TemporaryAnswerError(f"the connection broke off ({error})") from error
        if not response.is_success:
            self._raise_for_status(response, bytes(response_bytes))
        try:
            return json.loads(bytes(response_bytes))
        except (ValueError, RecursionError) as error:
            raise NoAnswerError(
                f"the answer is no JSON; --api={self.api!r} may be no such API, whose URL mostly "
                "ends in /v1"
            ) from error

    def _raise_for_status(self, response: httpx2.Response, content: bytes) -> NoReturn:
        http_status, server_message = response.status_code, read_server_error(content)
        if http_status in (401, 403):
            remedy = "check it" if self._has_key else "put one into the variable of --key-env"
            raise ConfigError(
                f"--api={self.api!r} refuses the key ({http_status}: {server_message}); {remedy}"
            )
        if http_status == 404:
            raise ConfigError(
                f"--api={self.api!r}: {response.url.path} or the model {self.model!r} is not there "
                f"({server_message}); such a URL mostly ends in /v1, and --model names a model"
            )
        if response.is_redirect:
            redirect_url = response.headers.get("location", "elsewhere")
            raise ConfigError(f"--api={self.api!r} leads to {redirect_url}; give that URL itself")
        if http_status in _PASSING_STATUS:
            raise TemporaryAnswerError(
                f"{http_status}: {server_message}", read_wait_s(response.headers.get("retry-after"))
            )
        raise NoAnswerError(f"{http_status}: {server_message}")


def to_data_url(image: Image.Image) -> str:
    """An RGB image as JPEG in a URL: its pixels alone, whatever came with the file."""
    rgb_image = Image.new("RGB", image.size)
    rgb_image.paste(image)
    jpeg_buffer = io.BytesIO()
    rgb_image.save(jpeg_buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_buffer.getvalue()).decode()}"


def _check_api_url(api: str) -> str:
    """The base URL without a slash at its end; raises ConfigError."""
    remedy = "give one such as http://127.0.0.1:11434/v1"
    try:
        url = httpx2.URL(api)
    except (httpx2.InvalidURL, TypeError) as error:
        raise ConfigError(f"--api={api!r} is no URL ({error}); {remedy}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--api={api!r} is no http or https URL; {remedy}")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            f"--api: the URL of {url.host} holds more than host and path; {remedy}, and a key in "
            "the variable of --key-env"
        )
    return str(url).rstrip("/").removesuffix("/chat/completions")
