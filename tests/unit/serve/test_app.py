import shutil
from pathlib import Path

import pytest

from dreambooth_ray.config.load import load_serve_config
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import ConfigError
from serve.app import build


def test_a_subject_may_have_replicas_of_its_own() -> None:
    application = build(
        ServeConfig.model_validate(
            {"replicas": {"minimum": 0, "maximum": 3}, "subjects": {"dog": {"maximum": 2}}}
        )
    )
    gateway = application._bound_deployment
    assert gateway.name == "Gateway"
    pools = {key: node._bound_deployment for key, node in gateway.init_kwargs.items()}
    assert {key: pool.name for key, pool in pools.items()} == {
        "Replica": "Replica",
        "subject_0": "Replica-dog",
    }
    scales = {key: pool._deployment_config.autoscaling_config for key, pool in pools.items()}
    assert [(s.min_replicas, s.initial_replicas, s.max_replicas) for s in scales.values()] == [
        (0, 1, 3),
        (0, 1, 2),
    ]


def test_keys_that_cannot_be_read_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth\.keys_file"):
        build(ServeConfig.model_validate({"auth": {"keys_file": str(tmp_path / "none")}}))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"safety": {"policy": "none.yaml"}}, r"safety\.policy"),
        ({"provenance": {"certificate": "a.pem", "private_key": "b.pem"}}, "provenance"),
    ],
)
def test_mistakes_are_told_before_anything_starts(values: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build(ServeConfig.model_validate(values))


def test_models_are_looked_at_before_anything_starts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    application = build(ServeConfig.model_validate({"models": {"a": tiny_model.name}}))
    (config,) = application._bound_deployment.init_args
    assert config.models == {"a": str(tiny_model)}
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    (damaged / "unet" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"models\.b=.*unet/config\.json is missing"):
        build(ServeConfig.model_validate({"models": {"a": str(tiny_model), "b": str(damaged)}}))


def test_a_configuration_from_a_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("replicas: {maximum: 2}\nport: 9000\n")
    config = load_serve_config(str(path), ["replicas.batch=4"])
    assert (config.port, config.replicas.maximum, config.replicas.batch) == (9000, 2, 4)
    assert load_serve_config(None, []) == ServeConfig()
    with pytest.raises(ConfigError, match=r"did you mean replicas\.maximum"):
        load_serve_config(None, ["replicas.maximun=2"])
    with pytest.raises(ConfigError, match=r"below replicas\.minimum"):
        load_serve_config(None, ["replicas.minimum=5"])
    with pytest.raises(ConfigError, match="can't be read"):
        load_serve_config(str(tmp_path / "none.yaml"), [])
