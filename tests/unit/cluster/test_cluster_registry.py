from pathlib import Path

import pytest

from cluster.cluster_registry import find_cluster
from dreambooth_ray.errors import ConfigError

TEXT = """
team: {address: "http://ray.example.com:8265/", token_env: TEAM_TOKEN, price_an_hour: 12.5}
typo: {address: "http://ray.example.com:8265", tokn: x}
bare: {address: "ray.example.com:8265"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clusters.yaml"
    path.write_text(TEXT)
    return path


def test_a_cluster_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = find_cluster("team", file)
    assert team.address == "http://ray.example.com:8265"
    assert team.price_an_hour == 12.5
    monkeypatch.delenv("TEAM_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="token_env='TEAM_TOKEN' is not set"):
        team.read_token()
    monkeypatch.setenv("TEAM_TOKEN", "t")
    assert team.read_token() == "t"


def test_mistakes_are_named(file: Path) -> None:
    for name, words in (
        ("other", "known are: team, typo, bare"),
        ("typo", r"typo\.tokn"),
        ("bare", r"bare\.address.*http://"),
    ):
        with pytest.raises(ConfigError, match=words):
            find_cluster(name, file)
    with pytest.raises(ConfigError, match=r"--clusters=.* can't be read: .*; give a YAML file"):
        find_cluster("team", file.parent)
    with pytest.raises(ConfigError, match="is not there"):
        find_cluster("team", file.with_name("none.yaml"))
