"""Single requests to S3 where fsspec's general calls make several.

By fsspec a read is HEAD and GET, a look for a file that is not there HEAD and LIST, a look into an
empty folder two LISTs, and a removal four requests. Object stores count and charge each one.
Paths are `bucket/key`. All raise what s3fs raises: FileNotFoundError, PermissionError, OSError.
"""

import errno
from collections.abc import Iterator
from typing import Any

_MOST_KEYS = 1_000  # of one LIST and of one removal, as S3 has it


def is_s3_filesystem(filesystem: Any) -> bool:
    """Whether these calls are for this filesystem."""
    protocol = filesystem.protocol
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol)


def read_file(filesystem: Any, path: str, start: int | None = None) -> bytes:
    """GET, of all bytes or those from `start` on; b"" where a file ends before `start`."""
    # With more than one part at a time it would ask for the size first.
    if start is None:
        return bytes(filesystem.cat_file(path, max_concurrency=1))
    try:
        return bytes(filesystem.cat_file(path, start=start))
    except OSError as error:
        if "range" in str(error).lower():
            return b""
        raise


def has_file(filesystem: Any, path: str) -> bool:
    """HEAD."""
    bucket, key, _ = filesystem.split_path(path)
    try:
        filesystem.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return False
    return True


def remove_file(filesystem: Any, path: str) -> None:
    """DELETE; what is not there is no error."""
    filesystem.rm_file(path)


def remove_folder(filesystem: Any, path: str) -> None:
    """A LIST and a removal for each thousand keys; one LIST where there are none."""
    while keys := _list_first_keys(filesystem, path):
        _remove_keys(filesystem, filesystem.split_path(path)[0], keys)
        if len(keys) < _MOST_KEYS:
            return


def _remove_keys(filesystem: Any, bucket: str, keys: list[str]) -> None:
    """One removal. What s3fs passes over in silence is raised: keys that the store has kept."""
    objects_to_remove = [{"Key": key} for key in keys]
    response = filesystem.call_s3(
        "delete_objects", Bucket=bucket, Delete={"Objects": objects_to_remove, "Quiet": True}
    )
    for removal_error in response.get("Errors", []):
        error_text = (
            f"{removal_error.get('Message', 'not removed')}: {bucket}/{removal_error.get('Key')}"
        )
        if removal_error.get("Code") == "AccessDenied":
            raise PermissionError(error_text)
        raise OSError(errno.EIO, error_text)


def _list_first_keys(filesystem: Any, path: str) -> list[str]:
    bucket, key, _ = filesystem.split_path(path)
    response = filesystem.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=_as_prefix(key), MaxKeys=_MOST_KEYS
    )
    return [str(listed_object["Key"]) for listed_object in response.get("Contents", [])]


def list_names(filesystem: Any, path: str, after: str = "", limit: int | None = None) -> list[str]:
    """Names directly in a folder, beyond `after`, at most `limit`: one LIST for each thousand."""
    names: list[str] = []
    for name in _iterate_names_in_folder(
        filesystem, path, after, min(limit or _MOST_KEYS, _MOST_KEYS)
    ):
        names.append(name)
        if limit is not None and len(names) == limit:
            break
    return sorted(names)


def _iterate_names_in_folder(
    filesystem: Any, path: str, after: str, page_size: int
) -> Iterator[str]:
    bucket, key, _ = filesystem.split_path(path)
    prefix = _as_prefix(key)
    request_arguments: dict[str, Any] = {
        "Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": page_size,
    }  # fmt: skip
    if after:
        request_arguments["StartAfter"] = f"{prefix}{after}"
    while True:
        response = filesystem.call_s3("list_objects_v2", **request_arguments)
        keys = [str(listed_object["Key"]) for listed_object in response.get("Contents", [])]
        keys += [
            str(listed_object["Prefix"]).rstrip("/")
            for listed_object in response.get("CommonPrefixes", [])
        ]
        names = sorted(key.removeprefix(prefix) for key in keys)
        # A folder stands after its own name: it begins the answer though it was there before.
        yield from (name for name in names if name and name > after)
        if not response.get("IsTruncated"):
            return
        request_arguments["ContinuationToken"] = response["NextContinuationToken"]


def _as_prefix(key: str) -> str:
    return f"{key.rstrip('/')}/" if key else ""
