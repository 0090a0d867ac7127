"""Where a caller reaches this endpoint."""

from fastapi import Request


def find_base_url(request: Request) -> str:
    """Where the caller reached this endpoint; https where a proxy in front of it speaks that."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    base_url = request.base_url.replace(scheme="https" if scheme == "https" else "http")
    return str(base_url).rstrip("/")
