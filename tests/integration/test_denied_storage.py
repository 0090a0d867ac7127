"""Keys that may only read, may do nothing, or have expired: said in a line, before work begins."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dreambooth_ray import api
from dreambooth_ray.cli.gc import collect_garbage
from dreambooth_ray.config.load import load_config
from dreambooth_ray.display import QuietDisplay
from dreambooth_ray.errors import StorageError
from dreambooth_ray.preparation import prepare_run
from dreambooth_ray.storage.store import Store
from tests.fault_proxy import FaultProxy, Request
from tests.integration.seaweed import Seaweed
from tests.object_store import pointed_at

HALF = "photographs/half-0123456789ab"


@pytest.fixture
def reader(seaweed: Seaweed, proxied_uri: str) -> Iterator[str]:
    """A storage with a half upload, and keys in the environment that may read it."""
    Store(proxied_uri).write(f"{HALF}/photo.png", b"half")
    keys = {
        "AWS_ACCESS_KEY_ID": seaweed.reader_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.reader_secret,
    }
    with pointed_at(keys):
        yield proxied_uri


def prepare(photos: Path, uri: str) -> None:
    overrides = [f"subject.photos={photos}", f"storage.uri={uri}"]
    prepare_run(load_config("toy-robot.yaml", overrides), QuietDisplay())


def test_who_may_only_read_looks_and_changes_nothing(
    reader: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect_garbage(reader, delete=False, older_than="0s")
    assert HALF in capsys.readouterr().out
    actions: list[Callable[[], object]] = [
        lambda: prepare(photos, reader),
        lambda: collect_garbage(reader, delete=True, older_than="0s"),
        lambda: Store(reader).write("file", b""),
        lambda: Store(reader).create("file", b""),
        lambda: Store(reader).remove_file(f"{HALF}/photo.png"),
    ]
    for action in actions:
        with pytest.raises(StorageError, match=r"access is denied.*check the keys") as error:
            action()
        assert "\n" not in str(error.value)
    assert Store(reader).read(f"{HALF}/photo.png") == b"half"


@pytest.mark.parametrize(
    ("fault", "words"),
    [("access_denied", "access is denied"), ("expired_token", "the keys have expired")],
)
def test_keys_that_are_refused_are_named_before_work_begins(
    fault: str, words: str, proxied_uri: str, fault_proxy: FaultProxy, photos: Path
) -> None:
    fault_proxy.schedule = lambda _: fault  # type: ignore[return-value,assignment]
    with pytest.raises(StorageError, match=words):
        prepare(photos, proxied_uri)
    # One look, and no waiting for better times.
    assert len(fault_proxy.requests) == 1
    config = load_config(
        "toy-robot.yaml", [f"subject.photos={photos}", f"storage.uri={proxied_uri}"]
    )
    with pytest.raises(StorageError, match=words):
        api.train(config, quiet=True)


def test_keys_that_expire_on_the_way_are_named(proxied_uri: str, fault_proxy: FaultProxy) -> None:
    store = Store(proxied_uri)
    store.write("file", b"1")

    def expire(request: Request) -> str | None:
        return "expired_token" if request.operation != "HEAD" else None

    fault_proxy.schedule = expire  # type: ignore[assignment]
    for call in (lambda: store.read("file"), lambda: store.write("file", b""), store.names):
        with pytest.raises(StorageError, match="the keys have expired"):
            call()
