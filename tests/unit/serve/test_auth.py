import asyncio
from pathlib import Path

import pytest
import yaml

from dreambooth_ray.config.serving import AuthConfig
from dreambooth_ray.errors import ConfigError
from serve.api_errors import APIError
from serve.auth import ENVIRONMENT, Authenticator, key_hash, new_key, read_keys


def _guard(tmp_path: Path, **entry: object) -> tuple[Authenticator, str]:
    word, digest = new_key()
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([{"name": "ann", "sha256": digest, **entry}]))
    return Authenticator(AuthConfig(keys_file=str(path))), word


def test_a_key_is_its_owner_and_a_wrong_one_is_nobody(tmp_path: Path) -> None:
    guard, word = _guard(tmp_path)
    assert guard.identify(f"Bearer {word}", "1.2.3.4").id == "key:ann"
    for wrong in (
        None,
        "",
        "Bearer",
        f"Basic {word}",
        f"Bearer {word}x",
        f"Bearer {key_hash(word)}",
    ):
        with pytest.raises(APIError) as refused:
            guard.identify(wrong, "1.2.3.4")
        assert refused.value.status == 401
        assert word not in refused.value.message


def test_without_keys_callers_are_told_apart_by_address() -> None:
    guard = Authenticator(AuthConfig())
    assert guard.identify(None, "1.2.3.4").id != guard.identify("Bearer x", "5.6.7.8").id


def test_subjects_by_pattern(tmp_path: Path) -> None:
    guard, word = _guard(tmp_path, subjects=["toyworld", "ann-*"])
    caller = guard.identify(f"Bearer {word}", "")
    assert [caller.may_see(s) for s in ("toyworld", "ann-dog", "bob-dog")] == [True, True, False]


def test_rate_and_quota(tmp_path: Path) -> None:
    async def story() -> None:
        guard, word = _guard(tmp_path, rate="2/minute", images_per_day=5)
        caller = guard.identify(f"Bearer {word}", "")
        await guard.count_request(caller)
        await guard.count_request(caller)
        with pytest.raises(APIError) as refused:
            await guard.count_request(caller)
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        assert 0 < (refused.value.retry_after_s or 0) <= 60
        await guard.count_images(caller, 4)
        with pytest.raises(APIError, match="5 per 1 day"):
            await guard.count_images(caller, 2)
        await guard.count_images(caller, 1)

    asyncio.run(story())


def test_keys_of_the_environment_and_of_a_broken_file(tmp_path: Path) -> None:
    word, digest = new_key()
    found = read_keys(AuthConfig(), {ENVIRONMENT: f"[{{name: bob, sha256: {digest}}}]"})
    assert [k.name for k in found] == ["bob"]
    (tmp_path / "keys.yaml").write_text(f"- {{name: bob, key: {word}}}")
    with pytest.raises(ConfigError) as error:
        read_keys(AuthConfig(keys_file=str(tmp_path / "keys.yaml")), {})
    assert word not in str(error.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_keys(AuthConfig(keys_file=str(tmp_path / "none.yaml")), {})
