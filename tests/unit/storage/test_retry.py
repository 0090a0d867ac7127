import errno

import pytest

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.retry import explain_local_error, retry_while_away


class Outage:
    """Fails with each error in turn, then answers; time passes by its own clock."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.now_s = list(errors), 0.0

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "here"

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def run(self, patience_s: float) -> str:
        return retry_while_away(self, "s3://b/x", patience_s, self.wait, lambda: self.now_s)


GONE = FileNotFoundError(errno.ENOENT, "The specified bucket does not exist")


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(), TimeoutError(), OSError(errno.EBUSY, "SlowDown"), GONE]
)
def test_an_outage_is_waited_out(error: Exception) -> None:
    outage = Outage(*[error] * 30)
    assert outage.run(patience_s=180) == "here"
    assert outage.errors == []
    assert 60 < outage.now_s < 180


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("InvalidAccessKeyId"), "access is denied.*AWS_ACCESS_KEY_ID"),
        (OSError(errno.EINVAL, "odd"), r"odd.*storage\.uri"),
    ],
)
def test_what_waiting_can_not_mend_is_said_at_once(error: Exception, words: str) -> None:
    outage = Outage(error)
    with pytest.raises(StorageError, match=words):
        outage.run(patience_s=180)
    assert outage.now_s == 0


@pytest.mark.parametrize(
    ("error", "words"), [(ConnectionRefusedError("refused"), "does not answer"), (GONE, "bucket")]
)
def test_patience_ends(error: Exception, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        Outage(*[error] * 1000).run(patience_s=60)


def test_answers_pass_through() -> None:
    with pytest.raises(FileNotFoundError):
        Outage(FileNotFoundError("no such key")).run(patience_s=60)


def test_a_full_disk_is_named() -> None:
    assert "full" in str(explain_local_error(OSError(errno.ENOSPC, "No space left"), "/data"))
    assert explain_local_error(OSError(errno.ENOENT, "none"), "/data") is None


def refusal(code: str, kind: type[OSError] = PermissionError) -> OSError:
    """As s3fs raises what S3 has refused."""
    error = kind(f"S3 says {code}")
    error.__cause__ = S3Error({"Error": {"Code": code}})
    return error


class S3Error(Exception):
    """As botocore's."""

    def __init__(self, response: dict[str, dict[str, str]]) -> None:
        super().__init__()
        self.response = response


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "access is denied"),
        ("ExpiredToken", "the keys have expired.*AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", "clock is wrong"),
    ],
)
def test_what_is_wrong_with_keys_is_said_in_plain_words(code: str, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        Outage(refusal(code)).run(patience_s=180)


@pytest.mark.parametrize("code", ["IncompleteBody", "BadDigest"])
def test_what_was_spoiled_on_its_way_is_sent_again(code: str) -> None:
    assert Outage(refusal(code, OSError)).run(patience_s=180) == "here"
