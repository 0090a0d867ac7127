import asyncio
from pathlib import Path

import pytest
import yaml

from dreambooth_ray.config.serving import AuthConfig
from dreambooth_ray.errors import ConfigError
from serve.api_errors import APIError
from serve.auth import KEYS_VARIABLE, Authenticator, hash_api_key, new_api_key, read_api_keys


def _authenticator(tmp_path: Path, **entry: object) -> tuple[Authenticator, str]:
    key, digest = new_api_key()
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([{"name": "ann", "sha256": digest, **entry}]))
    return Authenticator(AuthConfig(keys_file=str(path))), key


def test_a_key_is_its_owner_and_a_wrong_one_is_nobody(tmp_path: Path) -> None:
    authenticator, key = _authenticator(tmp_path)
    assert authenticator.identify_caller(f"Bearer {key}", "1.2.3.4").id == "key:ann"
    for wrong in (
        None,
        "",
        "Bearer",
        f"Basic {key}",
        f"Bearer {key}x",
        f"Bearer {hash_api_key(key)}",
    ):
        with pytest.raises(APIError) as refused:
            authenticator.identify_caller(wrong, "1.2.3.4")
        assert refused.value.status == 401
        assert key not in refused.value.message


def test_without_keys_callers_are_told_apart_by_address() -> None:
    authenticator = Authenticator(AuthConfig())
    assert (
        authenticator.identify_caller(None, "1.2.3.4").id
        != authenticator.identify_caller("Bearer x", "5.6.7.8").id
    )


def test_subjects_by_pattern(tmp_path: Path) -> None:
    authenticator, key = _authenticator(tmp_path, subjects=["toyworld", "ann-*"])
    caller = authenticator.identify_caller(f"Bearer {key}", "")
    assert [caller.may_see_subject(s) for s in ("toyworld", "ann-dog", "bob-dog")] == [
        True,
        True,
        False,
    ]


def test_rate_and_quota(tmp_path: Path) -> None:
    async def story() -> None:
        authenticator, key = _authenticator(tmp_path, rate="2/minute", images_per_day=5)
        caller = authenticator.identify_caller(f"Bearer {key}", "")
        await authenticator.enforce_request_rate(caller)
        await authenticator.enforce_request_rate(caller)
        with pytest.raises(APIError) as refused:
            await authenticator.enforce_request_rate(caller)
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        assert 0 < (refused.value.retry_after_s or 0) <= 60
        await authenticator.enforce_daily_image_limit(caller, 4)
        with pytest.raises(APIError, match="5 per 1 day"):
            await authenticator.enforce_daily_image_limit(caller, 2)
        await authenticator.enforce_daily_image_limit(caller, 1)

    asyncio.run(story())


def test_keys_of_the_environment_and_of_a_broken_file(tmp_path: Path) -> None:
    key, digest = new_api_key()
    keys = read_api_keys(AuthConfig(), {KEYS_VARIABLE: f"[{{name: bob, sha256: {digest}}}]"})
    assert [k.name for k in keys] == ["bob"]
    (tmp_path / "keys.yaml").write_text(f"- {{name: bob, key: {key}}}")
    with pytest.raises(ConfigError) as error:
        read_api_keys(AuthConfig(keys_file=str(tmp_path / "keys.yaml")), {})
    assert key not in str(error.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_api_keys(AuthConfig(keys_file=str(tmp_path / "none.yaml")), {})
