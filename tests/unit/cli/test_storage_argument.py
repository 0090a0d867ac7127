from pathlib import Path

import pytest

from dreambooth_ray.cli.storage_argument import open_storage
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.storage.store import Store


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Store(str(tmp_path / "out")).write("runs/one/config.yaml", b"{}")
    return tmp_path / "out"


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        ["out"],
        ["storage.uri=out"],
        ["toy-robot"],
        ["toy-robot.yaml", "storage.uri=out"],
        ["mine.yaml"],
        ["file://{out}"],
        ["out", "storage.options.auto_mkdir=true"],
    ],
)
def test_a_storage_is_given_as_other_verbs_take_it(
    storage: Path, arguments: list[str] | None
) -> None:
    Path("mine.yaml").write_text("storage: {uri: out}")
    filled = None if arguments is None else [a.format(out=storage) for a in arguments]
    assert open_storage(filled).uri == str(storage)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "storage.uri='nowhere' holds no runs"),
        (["out/runs"], "storage.uri='out/runs' holds no runs"),
        (["storage.uri=elsewhere"], "storage.uri='elsewhere' holds no runs"),
        (["out", "more"], "'more' is one argument too many"),
        (["nothing.yaml"], "no recipe 'nothing.yaml'"),
        (["storage.url=out"], "did you mean storage.uri"),
    ],
)
def test_an_address_that_is_mistaken_is_said(
    storage: Path, arguments: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_storage(arguments)
