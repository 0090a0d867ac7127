"""Remote storage that is away for a while, and what to tell a person when it stays away.

Clients raise errors of many libraries (fsspec, botocore, aiohttp), which are told apart by
name here, so that none of them has to be imported for a local folder.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from dreambooth_ray.errors import DreamBoothError, StorageError

PATIENCE_S = 180.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_PASSING = {
    "HTTPClientError",
    "ConnectionError",
    "TimeoutError",
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteRead",
    "ResponseParserError",
}
_PASSING_NUMBERS = {errno.EREMOTEIO, errno.EBUSY, errno.ETIMEDOUT, errno.EIO}
# Codes of S3 that say the request did not arrive as it was sent.
_SPOILED = {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_LOCAL = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EROFS: "it is read-only; choose another storage.uri",
    errno.EACCES: "it may not be written or read; mend its permissions",
}
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def retry_while_away(
    work: Callable[[], _Result],
    where: str,
    patience_s: float = PATIENCE_S,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> _Result:
    """Do `work`, again and again with growing pauses while remote storage is away.

    raises: FileNotFoundError and FileExistsError as they are; StorageError, in words, for others
    """
    started_s, num_tries = clock(), 0
    while True:
        try:
            return work()
        except DreamBoothError:
            raise
        except Exception as error:
            if _is_missing_or_exists_error(error):
                raise
            if not is_transient_error(error) or clock() - started_s >= patience_s:
                raise StorageError(explain_error(error, where, clock() - started_s)) from error
            pause_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**num_tries) * random.uniform(0.5, 1)
            num_tries += 1
            _log.warning("storage %s: %s; trying again in %.1f s", where, error, pause_s)
            wait(pause_s)


def is_transient_error(error: BaseException) -> bool:
    """Whether the same call may well succeed later: no answer, overload, or the bucket gone."""
    if _error_class_names(error) & _PASSING or is_bucket_gone(error):
        return True
    if _error_code(error) in _SPOILED:
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_NUMBERS


def explain_error(error: BaseException, where: str, waited_s: float) -> str:
    """One line for a person: what is wrong with storage at `where`, and what to do."""
    if _error_code(error) in ("ExpiredToken", "TokenRefreshRequired"):
        return (
            f"storage {where}: the keys have expired ({error}); get new ones, with their "
            "AWS_SESSION_TOKEN or storage.options.token, and start again"
        )
    if _error_code(error) == "RequestTimeTooSkewed":
        return f"storage {where}: this machine's clock is wrong ({error}); set it"
    if isinstance(error, PermissionError) or _error_class_names(error) & _NO_CREDENTIALS:
        return (
            f"storage {where}: access is denied ({error}); check the keys, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or storage.options, and what they may do there"
        )
    if is_bucket_gone(error):
        return f"storage {where}: there is no such bucket; make it, or correct storage.uri"
    if is_transient_error(error):
        return (
            f"storage {where} does not answer ({error}), tried for {waited_s:.0f} s; check the "
            "network and the endpoint, AWS_ENDPOINT_URL or storage.options.endpoint_url"
        )
    return f"storage {where}: {type(error).__name__}: {error}; check storage.uri"


def explain_local_error(error: OSError, where: str) -> str | None:
    """As `explain_error`, for a folder of this machine; None for what callers expect."""
    explanation = _LOCAL.get(error.errno or 0)
    return f"storage {where}: {explanation} ({error})" if explanation else None


def _error_class_names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _error_code(error: BaseException) -> str:
    """S3's own word for an error; "" where it has none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str((response or {}).get("Error", {}).get("Code", ""))


def is_name_taken(error: OSError) -> bool:
    """Whether a conditional write was refused, as a file of that name is there."""
    # SeaweedFS says it in words alone, others by the code alone.
    is_refused = _error_code(error) in ("PreconditionFailed", "412")
    return is_refused or "pre-condition" in str(error).lower()


def is_beyond_end(error: BaseException | None) -> bool:
    """Whether a range was asked for that a file, shorter than it should be, does not have."""
    return error is not None and _error_code(error) in ("InvalidRange", "416")


def is_bucket_gone(error: BaseException) -> bool:
    """Whether a store says that there is no such bucket."""
    error_text = str(error).lower()
    return (
        isinstance(error, FileNotFoundError)
        and "bucket" in error_text
        and "not exist" in error_text
    )


def _is_missing_or_exists_error(error: BaseException) -> bool:
    """What says that a name is or isn't there: for callers to handle."""
    if is_bucket_gone(error):
        return False
    return isinstance(error, FileNotFoundError | FileExistsError)
