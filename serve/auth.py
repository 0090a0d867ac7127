"""Who asks, what they may see, and how much they may ask.

A key is a long random word; only its SHA-256 is kept. With no keys at all everybody may ask,
and callers are told apart by address.
"""

import fnmatch
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path
from typing import Annotated

from limits import RateLimitItem, parse
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from dreambooth_ray.config.serving import AuthConfig
from dreambooth_ray.config.yaml_text import parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError
from serve.api_errors import APIError

KEYS_VARIABLE = "DREAMBOOTH_API_KEYS"
_PREFIX = "db-"


class APIKey(BaseModel):
    """One caller, as the keys file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    subjects: tuple[str, ...] = Field(("*",), description="patterns of subjects and base models")
    rate: str | None = Field(None, description="requests, for example 60/minute")
    images_per_day: int | None = Field(None, ge=0)


def new_api_key() -> tuple[str, str]:
    """A fresh key and its SHA-256."""
    api_key = _PREFIX + secrets.token_urlsafe(32)
    return api_key, hash_api_key(api_key)


def hash_api_key(key: str) -> str:
    """What is kept of a key. Keys are random and long: a plain hash can't be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


class Caller:
    """Who asks: a key's owner, or an address where there are no keys."""

    def __init__(self, id_: str, key: APIKey | None) -> None:
        self.id, self.key = id_, key

    def may_see_subject(self, subject: str) -> bool:
        """Whether the caller may use a subject or base model."""
        return self.key is None or any(fnmatch.fnmatchcase(subject, p) for p in self.key.subjects)

    @property
    def may_see_all_subjects(self) -> bool:
        """Whether the caller may use everything."""
        return self.key is None or "*" in self.key.subjects

    @property
    def named_subjects(self) -> tuple[str, ...] | None:
        """All that the caller may use, where the key names each; None where it has patterns."""
        if self.key is None or any(c in pattern for pattern in self.key.subjects for c in "*?["):
            return None
        return self.key.subjects


def read_api_keys(config: AuthConfig, environment: dict[str, str] | None = None) -> list[APIKey]:
    """Keys of the file and of the environment (the same YAML list); raises ConfigError."""
    origins_and_texts = []
    if config.keys_file is not None:
        try:
            origins_and_texts.append((config.keys_file, read_text_file(Path(config.keys_file))))
        except OSError as error:
            raise ConfigError(
                f"auth.keys_file={config.keys_file!r} can't be read: {error}"
            ) from error
    environment_text = (os.environ if environment is None else environment).get(KEYS_VARIABLE)
    if environment_text:
        origins_and_texts.append((KEYS_VARIABLE, environment_text))
    return [api_key for origin, text in origins_and_texts for api_key in _parse_keys(text, origin)]


def _parse_keys(text: str, origin: str) -> list[APIKey]:
    try:
        api_keys = TypeAdapter(list[APIKey]).validate_python(
            parse_yaml(text, origin, list[APIKey]) or []
        )
        for api_key in api_keys:
            if api_key.rate is not None:
                parse(api_key.rate)
    except (ValidationError, ValueError) as error:
        # Not the error's own text: it would show what stands in the file.
        raise ConfigError(
            f"{origin} is no list of keys ({type(error).__name__}); each needs name and sha256, "
            "as `dreambooth key NAME` prints them, and may have subjects, rate, images_per_day"
        ) from error
    return api_keys


class Authenticator:
    """Knows callers by their keys and counts what they ask."""

    def __init__(self, config: AuthConfig) -> None:
        """raises ConfigError if the keys can't be read."""
        self._keys = read_api_keys(config)
        self._limiter = MovingWindowRateLimiter(storage_from_string(config.counts_uri))

    @property
    def allows_anonymous_callers(self) -> bool:
        """Whether everybody may ask."""
        return not self._keys

    def identify_caller(self, authorization: str | None, address: str) -> Caller:
        """The caller of a request; raises APIError 401."""
        if self.allows_anonymous_callers:
            return Caller(f"address:{address}", None)
        auth_scheme, _, presented_key = (authorization or "").partition(" ")
        key_sha256, matching_key = hash_api_key(presented_key.strip()), None
        # All are compared, so that time tells nothing.
        for api_key in self._keys:
            if hmac.compare_digest(api_key.sha256, key_sha256):
                matching_key = api_key
        if auth_scheme.lower() != "bearer" or matching_key is None:
            error_message = "no valid API key; send Authorization: Bearer KEY"
            raise APIError(401, "invalid_api_key", error_message)
        return Caller(f"key:{matching_key.name}", matching_key)

    async def enforce_request_rate(self, caller: Caller) -> None:
        """raises APIError 429 above the key's rate."""
        if caller.key is not None and caller.key.rate is not None:
            await self._consume_limit(
                parse(caller.key.rate), caller, "rate", 1, "rate_limit_exceeded"
            )

    async def enforce_daily_image_limit(self, caller: Caller, images: int) -> None:
        """raises APIError 429 above the key's images of a day."""
        if caller.key is None or caller.key.images_per_day is None:
            return
        if images > caller.key.images_per_day:
            raise _limit_error(f"{caller.key.images_per_day} images a day", "quota_exceeded", 86400)
        daily_limit = parse(f"{caller.key.images_per_day}/day")
        await self._consume_limit(daily_limit, caller, "images", images, "quota_exceeded")

    async def _consume_limit(
        self, item: RateLimitItem, caller: Caller, limit_name: str, cost: int, code: str
    ) -> None:
        if not await self._limiter.hit(item, limit_name, caller.id, cost=cost):
            rate_limit_window = await self._limiter.get_window_stats(item, limit_name, caller.id)
            raise _limit_error(
                str(item), code, max(1.0, rate_limit_window.reset_time - time.time())
            )


def _limit_error(limit: str, code: str, retry_after_s: float) -> APIError:
    error_message = f"more than this key's {limit}; come again later"
    return APIError(429, code, error_message, retry_after_s=retry_after_s)
