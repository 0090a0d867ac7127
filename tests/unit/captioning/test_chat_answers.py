import pickle

import pytest

from dreambooth_ray.captioning.chat_answers import (
    NoAnswerError,
    TemporaryAnswerError,
    read_caption_answer,
    read_server_error,
    read_wait_s,
)


def make_answer(content: object, **choice: object) -> dict[str, object]:
    return {"choices": [{"message": {"content": content}, **choice}]}


@pytest.mark.parametrize(
    "content",
    [
        "a dog in snow",
        " a dog\n in snow\n",
        '"a dog in snow"',
        "\u201ca dog in snow\u201d",
        "Caption: a dog in snow",
        "**Caption:** a dog in snow",
        "<think>a dog?\nyes</think>\n\na dog in snow",
        [{"type": "text", "text": "a dog in snow"}],
    ],
)
def test_a_caption_is_freed_of_what_models_put_around_it(content: object) -> None:
    assert read_caption_answer(make_answer(content)) == "a dog in snow"


@pytest.mark.parametrize("text", ['"a" and "b"', "it's a dog's", "a caption: b"])
def test_what_belongs_to_a_caption_stays(text: str) -> None:
    assert read_caption_answer(make_answer(text)) == text


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ([], "has no choices"),
        ({"choices": [{"message": None}]}, "has no choices"),
        (make_answer("x\0y"), "holds NUL"),
        (make_answer("x" * 20_000), "above 16,384 bytes"),
        (make_answer("a dog and", finish_reason="length"), "cut off at the server's limit"),
        (make_answer("", finish_reason="content_filter"), "content filter"),
        ({"choices": [{"message": {"content": None, "refusal": "I won't"}}]}, "refuses: I won't"),
    ],
)
def test_what_is_no_caption_is_said(answer: object, match: str) -> None:
    with pytest.raises(NoAnswerError, match=match) as raised:
        read_caption_answer(answer)
    assert not isinstance(raised.value, TemporaryAnswerError)


@pytest.mark.parametrize("content", ["", None, " \n", "<think>hm</think>", '""', 7])
def test_an_empty_answer_may_be_another_the_next_time(content: object) -> None:
    with pytest.raises(TemporaryAnswerError, match="is empty"):
        read_caption_answer(make_answer(content))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"error": {"message": "no\\n model", "code": 1}}', "no model"),
        (b'{"error": "no model"}', "no model"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b"<html>Bad\xff Gateway</html>", "<html>Bad\ufffd Gateway</html>"),
        (b"x" * 1000, "x" * 200 + "..."),
        (b"", "nothing more"),
        (b"no \x1b[31mimages", "no [31mimages"),
        (b"[" * 100_000, "[" * 200 + "..."),
    ],
)
def test_an_error_is_a_servers_own_words_on_one_line(content: bytes, text: str) -> None:
    assert read_server_error(content) == text


def test_how_long_to_wait() -> None:
    assert read_wait_s("7") == 7
    assert read_wait_s("-1") == 0
    assert read_wait_s("Wed, 21 Oct 2026 07:28:00 GMT") is None
    assert read_wait_s(None) is None


def test_errors_survive_pickling() -> None:
    copied = pickle.loads(pickle.dumps(TemporaryAnswerError("slow down", 3.0)))
    assert (str(copied), copied.wait_s) == ("slow down", 3.0)
