from typing import Any

import pytest

from dreambooth_ray.storage import s3_calls


class FakeS3:
    """Answers as S3 does, of one bucket in memory, in pages of three."""

    protocol = ("s3", "s3a")

    def __init__(self, *keys: str, kept: dict[str, str] | None = None) -> None:
        """kept: keys that it refuses to remove, and the code it gives for each"""
        self.keys, self.kept, self.methods = sorted(keys), kept or {}, list[str]()

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.methods.append(method)
        answer: dict[str, Any] = getattr(self, method)(arguments)
        return answer

    def list_objects_v2(self, arguments: dict[str, Any]) -> dict[str, Any]:
        prefix, delimiter = arguments["Prefix"], arguments.get("Delimiter", "\0")
        after = arguments.get("ContinuationToken") or arguments.get("StartAfter", "")
        contents, prefixes = list[str](), list[str]()
        for key in (k for k in self.keys if k.startswith(prefix) and k > after):
            folder, slash, _ = key.removeprefix(prefix).partition(delimiter)
            if f"{prefix}{folder}/" in prefixes:
                continue
            if len(contents) + len(prefixes) == min(arguments["MaxKeys"], 3):
                break
            (prefixes if slash else contents).append(f"{prefix}{folder}/" if slash else key)
        else:
            key = ""
        last = max([*contents, *(f"{prefix}\x7f" for prefix in prefixes)], default="")
        return {
            "Contents": [{"Key": key} for key in contents],
            "CommonPrefixes": [{"Prefix": prefix} for prefix in prefixes],
            "IsTruncated": bool(key),
            "NextContinuationToken": last,
        }

    def delete_objects(self, arguments: dict[str, Any]) -> dict[str, Any]:
        keys = [item["Key"] for item in arguments["Delete"]["Objects"]]
        self.keys = [key for key in self.keys if key not in keys or key in self.kept]
        errors = [{"Key": k, "Code": self.kept[k], "Message": "no"} for k in keys if k in self.kept]
        return {"Errors": errors} if errors else {}


def test_names_come_in_order_over_pages_each_folder_once() -> None:
    s3 = FakeS3("f/a.json", "f/a/1", "f/a/2", "f/b", "f/c/1", "f/d", "f/e", "g/x")
    assert s3_calls.list_names(s3, "bucket/f") == ["a", "a.json", "b", "c", "d", "e"]
    assert len(s3.methods) == 2


def test_names_beyond_one_and_no_more_than_asked_for() -> None:
    s3 = FakeS3(*(f"f/{k}.json" for k in range(9)))
    assert s3_calls.list_names(s3, "bucket/f", after="5.json") == ["6.json", "7.json", "8.json"]
    assert s3_calls.list_names(s3, "bucket/f", limit=2) == ["0.json", "1.json"]
    assert s3_calls.list_names(s3, "bucket/none") == []


def test_a_folder_is_removed_with_all_below_it() -> None:
    s3 = FakeS3("f/a", "f/b/c", "fg")
    s3_calls.remove_folder(s3, "bucket/f")
    assert s3.keys == ["fg"]
    assert s3.methods == ["list_objects_v2", "delete_objects"]


@pytest.mark.parametrize(("code", "kind"), [("AccessDenied", PermissionError), ("Odd", OSError)])
def test_what_the_store_keeps_is_no_success(code: str, kind: type[OSError]) -> None:
    s3 = FakeS3("f/a", "f/b", kept={"f/b": code})
    with pytest.raises(kind, match="bucket/f/b"):
        s3_calls.remove_folder(s3, "bucket/f")
