"""pydantic's errors in words for people."""

from typing import Any, cast

# pydantic's words for them are Python's.
_FORMS = {
    "tuple_type": "give a list: [a, b]",
    "dict_type": "give a mapping of names to values: {a: 1}",
    "too_short": "give at least one",
    "extra_forbidden": "there is no such key; check how it is written, or leave it out",
}


def explain_error(error: Any, remedy: str = "give it in the recipe or as {key}=...") -> str:
    """One of ValidationError.errors() as `key=value: what is wrong`.

    remedy: what to do where the key has no value
    """
    key = ".".join(str(part) for part in error["loc"])
    message = cast(str, error["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    if error["type"] in _FORMS:
        return f"{key}={error['input']!r}: {_FORMS[error['type']]}"
    if error["type"] == "missing":
        return f"{key} is not set; {remedy.format(key=key)}"
    if error["type"] == "string_too_short":
        return f"{key} is empty; {remedy.format(key=key)}"
    if isinstance(error["input"], dict) and error["type"] == "value_error":
        return message  # of a whole section: it names the keys that it is about
    return f"{key}={error['input']!r}: {message[:1].lower() + message[1:]}"
