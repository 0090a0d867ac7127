"""What servers of the chat API say: answers, and errors."""

import json
import re
from typing import Any

from dreambooth_ray.data.caption_text import MAX_CAPTION_BYTES, check_characters, join_lines
from dreambooth_ray.errors import DataError, DreamBoothError

_MAX_ERROR_CHARACTERS = 200
# Models that think aloud, and ways to begin or frame a caption that are no part of it.
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_HEADING = re.compile(r"^\W*caption\W*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u00ab": "\u00bb"}


class NoAnswerError(DreamBoothError):
    """One image that a server has no caption for; for others it may have one."""


class TemporaryAnswerError(NoAnswerError):
    """What may be gone at the next try.

    wait_s: what the server asks to wait, None where it says nothing
    """

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.wait_s = wait_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.wait_s)


def read_caption_answer(answer: Any) -> str:
    """The caption in an answer, on one line.

    raises: TemporaryAnswerError where it is empty; NoAnswerError for another that is none
    """
    try:
        answer_choice = answer["choices"][0]
        message_content, model_refusal = (
            answer_choice["message"].get("content"),
            answer_choice["message"].get("refusal"),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise NoAnswerError("the answer has no choices[0].message.content") from error
    if isinstance(message_content, list):  # as parts, which some servers give back as they got them
        message_content = "".join(
            str(p.get("text", "")) for p in message_content if isinstance(p, dict)
        )
    if model_refusal:
        raise NoAnswerError(f"the model refuses: {_shorten_error_text(str(model_refusal))}")
    if answer_choice.get("finish_reason") == "content_filter":
        raise NoAnswerError("the server's content filter withheld the answer")
    if answer_choice.get("finish_reason") == "length":
        raise NoAnswerError("the answer was cut off at the server's limit of tokens; raise it")
    caption = _strip_heading_and_quotes(
        join_lines(_THOUGHTS.sub("", message_content if isinstance(message_content, str) else ""))
    )
    if not caption:
        raise TemporaryAnswerError("the answer is empty")
    try:
        check_characters(caption, "the answer")
    except DataError as error:
        raise NoAnswerError(str(error)) from error
    if len(caption.encode()) > MAX_CAPTION_BYTES:
        raise NoAnswerError(f"the answer is above {MAX_CAPTION_BYTES:,} bytes")
    return caption


def read_server_error(content: bytes) -> str:
    """What a server says is wrong: its own words where there are some, on one line."""
    error_text = content.decode(errors="replace")
    try:
        server_error = json.loads(error_text)
    except (ValueError, RecursionError):
        server_error = error_text
    for error_field in ("error", "message", "detail"):
        if isinstance(server_error, dict) and error_field in server_error:
            server_error = server_error[error_field]
    return (
        _shorten_error_text(
            server_error if isinstance(server_error, str) else json.dumps(server_error)
        )
        or "nothing more"
    )


def read_wait_s(header: str | None) -> float | None:
    """Of a Retry-After in seconds; None for another, or none."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None


def _strip_heading_and_quotes(text: str) -> str:
    text = _HEADING.sub("", text).strip("* ")
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _shorten_error_text(text: str) -> str:
    # What is shown in a terminal commands none.
    one_line_text = join_lines("".join(c if c.isprintable() else " " for c in text))
    if len(one_line_text) <= _MAX_ERROR_CHARACTERS:
        return one_line_text
    return one_line_text[:_MAX_ERROR_CHARACTERS] + "..."
