"""Finished images behind URLs that whoever holds them may read, for a while.

serve/files/{expires}-{random}.{suffix}   an image; expires is Unix time in seconds
serve/files/key                           what URLs are signed with, the same for all gateways

The key lies beside the images it opens: who can read storage needs no URL.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator
from functools import cached_property

from dreambooth_ray.storage.file_listing import list_files
from dreambooth_ray.storage.garbage import Garbage
from dreambooth_ray.storage.store import Store
from serve.api_errors import APIError
from serve.poll_timer import log_failure

FOLDER = "serve/files"
ROUTE = "/v1/images/files"
_KEY = "key"
_NAME = re.compile(r"^(\d{12})-[0-9a-f]{32}\.(png|jpeg|webp)$")
_MOST_A_LOOK = 1000
_FORGET_INTERVAL_S = 60.0


class SignedFiles:
    """Writes images and reads them by their signed paths. Blocking: call it from a thread."""

    def __init__(self, storage_uri: str, keep_s: float) -> None:
        """keep_s: how long a URL is good for"""
        self._store, self._keep_s = Store(storage_uri).sub(FOLDER), keep_s

    def write(self, data: bytes, suffix: str) -> str:
        """Keep an image; returns the path of its URL, with its signature."""
        name = f"{int(time.time() + self._keep_s):012d}-{secrets.token_hex(16)}.{suffix}"
        signature = self._sign(name)
        self._store.write(name, data)
        return f"{ROUTE}/{name}?signature={signature}"

    def read(self, name: str, signature: str) -> bytes:
        """An image that is kept; raises APIError 403 for another signature, 404 once it is gone."""
        match = _NAME.fullmatch(name)
        expected = self._sign(name).encode()
        if match is None or not hmac.compare_digest(expected, signature.encode(errors="replace")):
            error_message = "the URL's signature does not fit; take the URL as the answer had it"
            raise APIError(403, "invalid_signature", error_message)
        try:
            if int(match[1]) > time.time():
                return self._store.read(name)
        except FileNotFoundError:
            pass
        error_message = (
            f"the URL has expired: images are kept for {self._keep_s:g} s; ask for another"
        )
        raise APIError(404, "file_expired", error_message)

    def forget_expired(self, now_s: float | None = None) -> None:
        """Remove images whose time is up. now_s: Unix time"""
        for name in self._store.files_after("", "", _MOST_A_LOOK):
            match = _NAME.fullmatch(name)
            if match is None or int(match[1]) > (time.time() if now_s is None else now_s):
                return  # they are in the order of their times
            self._store.remove_file(name)

    async def watch_expired(self) -> None:
        """Remove images whose time is up, for as long as the process lives."""
        while True:
            with log_failure("files.forget_failed"):
                await asyncio.to_thread(self.forget_expired)
            await asyncio.sleep(min(_FORGET_INTERVAL_S, self._keep_s))

    def _sign(self, name: str) -> str:
        return hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()

    @cached_property
    def _key(self) -> bytes:
        try:
            return self._store.read(_KEY)
        except FileNotFoundError:
            signing_key = secrets.token_hex(32).encode()
            return signing_key if self._store.create(_KEY, signing_key) else self._store.read(_KEY)


def find_expired_files(storage: Store, before_s: float, now_s: float) -> Iterator[Garbage]:
    """Expired images of endpoints that are gone; those that are up remove theirs themselves.

    before_s, now_s: Unix time; what has changed since before_s stays
    """
    for listed_file in list_files(storage, FOLDER):
        match = _NAME.fullmatch(listed_file.name)
        if match and int(match[1]) < now_s and listed_file.modified_s < before_s:
            yield Garbage(
                f"{FOLDER}/{listed_file.name}",
                "an expired image",
                listed_file.size_bytes,
                listed_file.modified_s,
                (),
            )
