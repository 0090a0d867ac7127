"""Every error in OpenAI's form, whoever raised it."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from serve import multipart
from serve.api_errors import APIError
from serve.base_url import find_base_url
from serve.gateway_metrics import Metrics

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer errors of routes, of their validation and of the router itself."""

    def error_response(api_error: APIError, headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.refusals.labels(api_error.code).inc()
        return JSONResponse(
            api_error.body, api_error.status, headers={**api_error.headers, **(headers or {})}
        )

    @app.exception_handler(APIError)
    async def handle_api_error(request: Request, error: APIError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(
        request: Request, error: RequestValidationError
    ) -> JSONResponse:
        return error_response(multipart.build_validation_error(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        code, path = _CODES.get(error.status_code, "invalid_request"), request.url.path[:120]
        if error.status_code == 405:
            allowed_methods = ", ".join(sorted(_find_methods(app, request)))
            error_message = (
                f"{path} does not take {request.method[:20]}; it takes {allowed_methods}"
            )
            return error_response(APIError(405, code, error_message), {"Allow": allowed_methods})
        error_message = (
            _explain_unknown_path(app, request) if error.status_code == 404 else str(error.detail)
        )
        return error_response(APIError(error.status_code, code, error_message))

    @app.exception_handler(Exception)
    async def handle_unexpected_error(request: Request, error: Exception) -> JSONResponse:
        error_message = "something broke here; the request id is in the logs"
        return error_response(APIError(500, "internal_error", error_message))


def _has_route(app: FastAPI, path: str, method: str) -> bool:
    """Whether a route takes a method at a path; files of the page are read alone."""
    scope = {"type": "http", "path": path, "root_path": "", "method": method}
    for route in app.routes:
        route_match, _ = route.matches(scope)
        if route_match is Match.FULL and (not isinstance(route, Mount) or method == "GET"):
            return True
    return False


def _find_methods(app: FastAPI, request: Request) -> set[str]:
    methods = {m for m in _METHODS if _has_route(app, request.url.path, m)}
    return methods | {"HEAD"} if "GET" in methods else methods


def _explain_unknown_path(app: FastAPI, request: Request) -> str:
    """What is at a path instead of nothing: the API's, under another base URL."""
    request_path = request.url.path
    api_path = request_path.rpartition("/v1/")[2].removeprefix("/")
    if (
        request_path == "/page"
        or request_path.startswith("/page/")
        or not any(_has_route(app, f"/v1/{api_path}", method) for method in _METHODS)
    ):
        return f"there is nothing at {request_path[:120]}; /docs lists what there is"
    base_url = f"{find_base_url(request)}/v1"
    return (
        f"there is nothing at {request_path[:120]}; the API is below {base_url}: set it as base_url"
    )
