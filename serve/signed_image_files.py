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
from serve.poll_timer import log_and_suppress_failure

FOLDER = "serve/files"
ROUTE = "/v1/images/files"
_KEY = "key"
_NAME = re.compile(r"^(\d{12})-[0-9a-f]{32}\.(png|jpeg|webp)$")
_MOST_A_LOOK = 1000
_FORGET_INTERVAL_S = 60.0


class SignedImageFiles:
    """Writes images and reads them by their signed paths. Blocking: call it from a thread."""

    def __init__(self, storage_uri: str, keep_s: float) -> None:
        """keep_s: how long a URL is good for"""
        self._store, self._keep_s = Store(storage_uri).sub(FOLDER), keep_s

    def write(self, data: bytes, suffix: str) -> str:
        """Keep an image; returns the path of its URL, with its signature."""
        name = f"{int(time.time() + self._keep_s):012d}-{secrets.token_hex(16)}.{suffix}"
        url_signature = self._sign_name(name)
        self._store.write(name, data)
        return f"{ROUTE}/{name}?signature={url_signature}"

    def read(self, name: str, signature: str) -> bytes:
        """An image that is kept; raises APIError 403 for another signature, 404 once it is gone."""
        name_match = _NAME.fullmatch(name)
        expected_signature = self._sign_name(name).encode()
        if name_match is None or not hmac.compare_digest(
            expected_signature, signature.encode(errors="replace")
        ):
            error_message = "the URL's signature does not fit; take the URL as the answer had it"
            raise APIError(403, "invalid_signature", error_message)
        try:
            if int(name_match[1]) > time.time():
                return self._store.read(name)
        except FileNotFoundError:
            pass
        error_message = (
            f"the URL has expired: images are kept for {self._keep_s:g} s; ask for another"
        )
        raise APIError(404, "file_expired", error_message)

    def remove_expired_images(self, now_s: float | None = None) -> None:
        """Remove images whose time is up. now_s: Unix time"""
        for name in self._store.files_after("", "", _MOST_A_LOOK):
            name_match = _NAME.fullmatch(name)
            if name_match is None or int(name_match[1]) > (time.time() if now_s is None else now_s):
                return  # they are in the order of their times
            self._store.remove_file(name)

    async def remove_expired_images_forever(self) -> None:
        """Remove images whose time is up, for as long as the process lives."""
        while True:
            with log_and_suppress_failure("files.forget_failed"):
                await asyncio.to_thread(self.remove_expired_images)
            await asyncio.sleep(min(_FORGET_INTERVAL_S, self._keep_s))

    def _sign_name(self, name: str) -> str:
        return hmac.new(self._url_signing_key, name.encode(), hashlib.sha256).hexdigest()

    @cached_property
    def _url_signing_key(self) -> bytes:
        try:
            return self._store.read(_KEY)
        except FileNotFoundError:
            url_signing_key = secrets.token_hex(32).encode()
            return (
                url_signing_key
                if self._store.create(_KEY, url_signing_key)
                else self._store.read(_KEY)
            )


def find_expired_image_files(storage: Store, before_s: float, now_s: float) -> Iterator[Garbage]:
    """Expired images of endpoints that are gone; those that are up remove theirs themselves.

    before_s, now_s: Unix time; what has changed since before_s stays
    """
    for stored_file in list_files(storage, FOLDER):
        name_match = _NAME.fullmatch(stored_file.name)
        if name_match and int(name_match[1]) < now_s and stored_file.modified_s < before_s:
            yield Garbage(
                f"{FOLDER}/{stored_file.name}",
                "an expired image",
                stored_file.size_bytes,
                stored_file.modified_s,
                (),
            )
