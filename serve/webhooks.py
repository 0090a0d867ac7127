"""Word to a caller's own server that a job has ended: signed, retried, to public addresses only."""

import asyncio
import ipaddress
import json
import logging
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
from safehttpx import AsyncSecureTransport
from standardwebhooks import Webhook

from dreambooth_ray.errors import ConfigError

_LOG = logging.getLogger("dreambooth.serve")
_TIMEOUT_S = 10.0
_PAUSES_S = (1.0, 5.0, 30.0, 120.0)
_SCHEMES = ("https", "http")
Transport = Callable[[str], httpx2.AsyncBaseTransport]


def check_target(url: str) -> str:
    """One public address that the URL's host stands for.

    The address is used for the connection itself, so that the name can't come to mean
    another one in between.
    raises: ConfigError if the host has an address that is not public, or the URL is odd
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(f"is no URL ({error})") from error
    if parts.scheme not in _SCHEMES or not host:
        raise _refused("is no http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("holds a user name; give it without one")
    try:
        found = socket.getaddrinfo(
            host, port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise _refused("names a host that is not found") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(_is_public(address) for address in addresses):
        raise _refused("leads to an address that is not public")
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is not None:
            return _is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _refused(why: str) -> ConfigError:
    return ConfigError(f"webhook_url {why}")


async def deliver(
    url: str,
    secret: str,
    event: dict[str, Any],
    *,
    pauses_s: tuple[float, ...] = _PAUSES_S,
    transport: Transport = AsyncSecureTransport,
) -> bool:
    """POST an event, signed after standardwebhooks.com; True once it is answered with 2xx.

    Tried once and again after each of `pauses_s`; redirects are not followed. The address
    is checked anew each time.
    transport(address): what connects to an address
    """
    identity, body = f"msg_{uuid.uuid4().hex}", json.dumps(event)
    for pause_s in (*pauses_s, None):
        try:
            if await _send(url, secret, identity, body, transport):
                return True
        except ConfigError as error:
            _LOG.warning("webhook.refused", extra={"error": str(error)})
            return False
        except httpx2.HTTPError as error:
            _LOG.info("webhook.failed", extra={"error": type(error).__name__})
        if pause_s is not None:
            await asyncio.sleep(pause_s)
    return False


async def _send(url: str, secret: str, identity: str, body: str, transport: Transport) -> bool:
    address = await asyncio.to_thread(check_target, url)
    now = datetime.now(tz=UTC)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": identity,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(identity, now, body),
    }
    async with httpx2.AsyncClient(
        transport=transport(address), timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False
    ) as client:
        answer = await client.post(url, content=body, headers=headers)
    return bool(answer.is_success)
