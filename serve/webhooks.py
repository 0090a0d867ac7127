"""Tells a caller's own server that a job has ended: signed, retried, to public addresses only."""

import asyncio
import ipaddress
import json
import logging
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from dreambooth_ray.errors import ConfigError
from serve.api_errors import APIError

_LOG = logging.getLogger("dreambooth.serve")
_TIMEOUT_S = 10.0
_PAUSES_S = (1.0, 5.0, 30.0, 120.0)
_SCHEMES = {"https": 443, "http": 80}
Transport = Callable[[str], httpx2.AsyncBaseTransport]


class PinnedTransport(httpx2.AsyncHTTPTransport):
    """Connects to one address, whatever the URL's name means by now; TLS checks the name."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer of the address. The Host header was set when the request was made."""
        request.extensions |= {"sni_hostname": request.url.raw_host.decode("ascii")}
        request.url = request.url.copy_with(host=self._address)
        return await super().handle_async_request(request)


def check_webhook_secret(secret: str, name: str) -> str:
    """The signing secret, if it is one; raises ConfigError naming the variable it is in."""
    try:
        Webhook(secret)
    except (ValueError, EmptyWebhookSecretError) as error:
        raise ConfigError(
            f"{name} is no webhook secret; write whsec_ and at least one byte in base64, for "
            "example what `openssl rand -base64 32` prints"
        ) from error
    return secret


async def check_webhook_url(url: str, *, is_enabled: bool) -> None:
    """Whether a job may have this webhook; raises APIError 400."""
    if not is_enabled:
        error_message = "webhooks are off here: the endpoint has no signing secret"
        raise APIError(400, "invalid_value", error_message, param="webhook_url")
    try:
        await asyncio.to_thread(resolve_public_address, url)
    except ConfigError as error:
        raise APIError(400, "invalid_value", str(error), param="webhook_url") from error


def resolve_public_address(url: str) -> str:
    """One public address that the URL's host stands for.

    The address is used for the connection itself, so that the name can't come to mean
    another one in between.
    raises: ConfigError if the host has an address that is not public, or the URL is odd
    """
    try:
        # Read by what will connect, so that no two parsers can differ over the host.
        url_parts = httpx2.URL(url)
        host = url_parts.raw_host.decode("ascii").strip("[]")
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise _make_webhook_url_error(f"is no URL ({error})") from error
    if url_parts.scheme not in _SCHEMES or not host:
        raise _make_webhook_url_error("is no http or https URL with a host")
    if url_parts.userinfo:
        raise _make_webhook_url_error("holds a user name; give it without one")
    port = url_parts.port or _SCHEMES[url_parts.scheme]
    if not 0 < port < 2**16:
        raise _make_webhook_url_error(f"has the port {port}; ports go from 1 to 65535")
    try:
        address_infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise _make_webhook_url_error("names a host that is not found") from error
    addresses = [str(address_info[4][0]) for address_info in address_infos]
    if not addresses or not all(_is_public_address(address) for address in addresses):
        raise _make_webhook_url_error("leads to an address that is not public")
    return addresses[0]


def _is_public_address(address: str) -> bool:
    parsed_address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed_address, ipaddress.IPv6Address):
        embedded_ipv4 = parsed_address.ipv4_mapped or parsed_address.sixtofour
        if embedded_ipv4 is not None:
            return _is_public_address(str(embedded_ipv4))
    return (
        parsed_address.is_global
        and not parsed_address.is_multicast
        and not parsed_address.is_reserved
    )


def _make_webhook_url_error(reason: str) -> ConfigError:
    return ConfigError(f"webhook_url {reason}")


async def deliver_webhook_event(
    url: str,
    secret: str,
    event: dict[str, Any],
    *,
    pauses_s: tuple[float, ...] = _PAUSES_S,
    transport: Transport = PinnedTransport,
) -> bool:
    """POST an event, signed after standardwebhooks.com; True once it is answered with 2xx.

    Tried once and again after each of `pauses_s`; redirects are not followed. The address
    is checked anew each time.
    transport(address): what connects to an address
    """
    webhook_message_id, event_json = f"msg_{uuid.uuid4().hex}", json.dumps(event)
    for retry_pause_s in (*pauses_s, None):
        try:
            if await _post_event(url, secret, webhook_message_id, event_json, transport):
                return True
        except ConfigError as error:
            _LOG.warning("webhook.refused", extra={"error": str(error)})
            return False
        except (httpx2.HTTPError, TimeoutError) as error:
            _LOG.info("webhook.failed", extra={"error": type(error).__name__})
        if retry_pause_s is not None:
            await asyncio.sleep(retry_pause_s)
    return False


async def _post_event(
    url: str, secret: str, message_id: str, body: str, transport: Transport
) -> bool:
    address = await asyncio.to_thread(resolve_public_address, url)
    sent_at = datetime.now(tz=UTC)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, sent_at, body),
    }
    async with (
        asyncio.timeout(_TIMEOUT_S),
        httpx2.AsyncClient(
            transport=transport(address),
            timeout=_TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
        ) as client,
        # What it says beside its status is not read: it may have no end.
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        return bool(response.is_success)
