"""Why a request is not answered with an image, in the form clients of OpenAI's API read."""

import math
from dataclasses import dataclass
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass
class APIError(Exception):
    """A request that is refused; the message says what to do.

    status: HTTP; code: for programs; param: the field at fault
    retry_after_s: when to come again
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    details: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__init__(
            self.status, self.code, self.message, self.param, self.retry_after_s, self.details
        )

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        """The OpenAI error object."""
        error_type = _TYPES.get(self.status)
        error_type = error_type or (
            "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error_object: dict[str, Any] = {
            "message": self.message,
            "type": error_type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error_object | ({"details": self.details} if self.details else {})}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, where there is a time."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


def busy_error(message: str, retry_after_s: float, code: str = "overloaded") -> APIError:
    """503 with Retry-After."""
    return APIError(503, code, message, retry_after_s=retry_after_s)


def storage_away_error() -> APIError:
    """503 for what only storage knows."""
    return busy_error("storage does not answer; come again", 5.0, "storage_away")


def model_not_found_error(model: str) -> APIError:
    """404, the same for what is not there and what is somebody else's."""
    error_message = f"model={model[:120]!r} is not served here; GET /v1/models lists what is"
    return APIError(404, "model_not_found", error_message, param="model")
