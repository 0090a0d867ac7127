"""What surrounds every request: its id, its size, its log line, protection. Plain ASGI."""

import json
import logging
import re
import sys
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api_errors import APIError
from serve.gateway_metrics import Metrics
from serve.signed_image_files import ROUTE as FILES_ROUTE

_LOG = logging.getLogger("dreambooth.serve")
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_CSP = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# FastAPI's page of the API loads its viewer from there.
_DOCS_CSP = (
    "default-src 'self'; img-src 'self' data: https://fastapi.tiangolo.com; "
    "style-src 'self' https://cdn.jsdelivr.net; "
    "script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; frame-ancestors 'none'"
)
_LOG_FIELDS = ("error", "pool", "job", "subject", "category", "score", "fingerprint", "request_id",
          "route", "status", "seconds", "caller")  # fmt: skip


class RequestMiddleware:
    """Wraps the application; one instance a gateway."""

    def __init__(self, app: ASGIApp, metrics: Metrics, body_bytes: int, behind_serve: bool) -> None:
        """body_bytes: of a whole request; behind_serve: Ray Serve's proxy adds X-Request-Id."""
        self._app, self._metrics, self._body_bytes = app, metrics, body_bytes
        self._behind_serve = behind_serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, request_started_s = Headers(scope=scope), time.monotonic()
        is_head = scope["method"] == "HEAD"
        scope = _tidy_scope(scope)
        client_request_id = headers.get("x-request-id", "")
        request_id = (
            client_request_id
            if _REQUEST_ID.fullmatch(client_request_id)
            else f"req_{uuid.uuid4().hex}"
        )
        scope.setdefault("state", {})["request_id"] = request_id
        http_status = 499

        async def send_with_headers(message: Message) -> None:
            nonlocal http_status
            if message["type"] == "http.response.start":
                http_status = message["status"]
                response_headers = MutableHeaders(scope=message)
                _add_security_headers(response_headers, scope["path"])
                if not self._behind_serve:
                    response_headers["X-Request-Id"] = request_id
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            api_error = self._check_request_headers(headers)
            if api_error is not None:
                self._metrics.refusals.labels(api_error.code).inc()
                response = JSONResponse(api_error.body, api_error.status, headers=api_error.headers)
                await response(scope, receive, send_with_headers)
            else:
                await self._app(scope, self._limit_body(receive), send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            self._metrics.requests.labels(route, str(http_status)).inc()
            _LOG.info(
                "request",
                extra={
                    "request_id": request_id,
                    "route": route,
                    "status": http_status,
                    "caller": scope["state"].get("caller"),
                    "seconds": round(time.monotonic() - request_started_s, 4),
                },
            )

    def _check_request_headers(self, headers: Headers) -> APIError | None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            return APIError(415, "unsupported_encoding", "send the body without Content-Encoding")
        content_length = headers.get("content-length", "0")
        if not content_length.isascii() or not content_length.isdigit():
            return APIError(400, "invalid_length", "Content-Length is no number")
        if int(content_length) > self._body_bytes:
            return self._too_large_error()
        return None

    def _too_large_error(self) -> APIError:
        error_message = f"the request is larger than {self._body_bytes} bytes; send less"
        return APIError(413, "body_too_large", error_message)

    def _limit_body(self, receive: Receive) -> Receive:
        received_bytes = 0

        async def receive_limited() -> Message:
            nonlocal received_bytes
            asgi_message = await receive()
            received_bytes += len(asgi_message.get("body", b""))
            if received_bytes > self._body_bytes:
                raise HTTPException(413, str(self._too_large_error()))
            return asgi_message

        return receive_limited


def _tidy_scope(scope: Scope) -> Scope:
    """HEAD is asked as GET, and slashes too many are passed over, as clients join them."""
    path = re.sub(r"/{2,}", "/", scope["path"])
    path = path.rstrip("/") or "/"
    http_method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "path": path, "raw_path": path.encode(), "method": http_method}


def _add_security_headers(headers: MutableHeaders, path: str) -> None:
    for header_name, header_value in _SECURITY_HEADERS.items():
        headers[header_name] = header_value
    if path.startswith(FILES_ROUTE):
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    headers["Content-Security-Policy"] = _DOCS_CSP if path == "/docs" else _CSP
    if path.startswith("/v1/"):
        headers["Cache-Control"] = "no-store"


class JsonLineFormatter(logging.Formatter):
    """One JSON object a line, of known fields alone: no body, prompt or key can slip in."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        log_line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.msg if not record.args else record.getMessage(),
        }
        log_line |= {
            k: getattr(record, k) for k in _LOG_FIELDS if getattr(record, k, None) is not None
        }
        if record.exc_info and record.exc_info[0] is not None:
            log_line["error"] = record.exc_info[0].__name__
        return json.dumps(log_line)


def log_to_stderr() -> None:
    """JSON lines on this process's standard error, which Ray keeps in its session's logs."""
    if not _LOG.handlers:
        log_handler = logging.StreamHandler(sys.stderr)
        log_handler.setFormatter(JsonLineFormatter())
        _LOG.addHandler(log_handler)
        _LOG.setLevel(logging.INFO)
        _LOG.propagate = False
