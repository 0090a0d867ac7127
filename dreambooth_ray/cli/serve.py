"""`dreambooth serve` and `dreambooth key`: the endpoint, and who may use it."""

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.errors import DreamBoothError

if TYPE_CHECKING:
    from dreambooth_ray.config.serving import ServeConfig

# ruff: noqa: PLC0415  imports inside verbs are this module's point

_READY_TIMEOUT_S = 300.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def key(name: Annotated[str, typer.Argument(help="whose key it is")]) -> None:
    """Make an API key; prints the key, which is shown once, and its line for auth.keys_file."""
    from serve.auth import APIKey, new_api_key

    api_key_secret, key_digest = new_api_key()
    api_key = APIKey(name=name, sha256=key_digest)
    print(api_key_secret)
    print(f"- {{name: {api_key.name}, sha256: {api_key.sha256}}}")


def serve(
    config: Annotated[
        str | None, typer.Argument(help="a YAML file; without one the toy model is served")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for example replicas.maximum=2")
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen at")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
) -> None:
    """Serve base models and every subject in storage over HTTP, until interrupted."""
    from dreambooth_ray.config.load import load_serve_config
    from serve.base_models import resolve_model_uris
    from serve.listen_address import check_listen_address

    all_overrides = list(overrides or [])
    if config is not None and "=" in config:
        all_overrides.insert(0, config)
        config = None
    all_overrides += [f"host={host}"] if host is not None else []
    all_overrides += [f"port={port}"] if port is not None else []
    serve_config = load_serve_config(config, all_overrides)
    resolve_model_uris(serve_config)
    if not serve_config.cluster.ray_address:
        check_listen_address(serve_config.host, serve_config.port)
    from cluster.session import ray_connection

    # Read by Ray's processes when they start: the pools are looked at every second.
    for metric_source in ("REPLICA", "HANDLE"):
        os.environ.setdefault(f"RAY_SERVE_{metric_source}_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    num_processes = serve_config.replicas.maximum + sum(
        s.maximum for s in serve_config.subjects.values()
    )
    with ray_connection(serve_config.cluster, num_processes):
        # After Ray has set its own handler: SIGTERM, as a supervisor sends it, ends as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        _serve_until_interrupted(serve_config)


def _serve_until_interrupted(config: "ServeConfig") -> None:
    import logging

    import ray.serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from serve.app import build

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    port = config.port or _find_free_port(config.host)
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False)
    http_options = HTTPOptions(host=config.host, port=port, keep_alive_timeout_s=65)
    ray.serve.start(http_options=http_options, logging_config=logging_config)
    try:
        ray.serve.run(build(config), name="dreambooth", logging_config=logging_config)
        server_url = f"http://{_format_url_host(config.host)}:{port}"
        _wait_until_ready(server_url)
        _print_usage(config, server_url)
        _wait_until_interrupted()
    finally:
        ray.serve.shutdown()


def _wait_until_interrupted() -> None:
    try:
        while True:
            # Not for long: a signal that the system hands to another thread wakes nobody here.
            time.sleep(1)
    except KeyboardInterrupt:
        print("stopping", file=sys.stderr)


def _find_free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _format_url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _wait_until_ready(server_url: str) -> None:
    from urllib.error import URLError
    from urllib.request import urlopen

    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            with urlopen(f"{server_url}/readyz", timeout=10):
                return
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise DreamBoothError(
                    f"the endpoint at {server_url} was not ready within {_READY_TIMEOUT_S:.0f} s "
                    f"({error}); look into Ray's logs"
                ) from error
            time.sleep(0.2)


def _print_usage(config: "ServeConfig", server_url: str) -> None:
    from serve.auth import Authenticator

    needs_no_key = Authenticator(config.auth).allows_anonymous_callers
    example_base_model = next(iter(config.models))
    bearer_header = "" if needs_no_key else "-H 'Authorization: Bearer KEY' "
    print(f"serving {', '.join(config.models)} and the subjects in {config.storage.uri}")
    print(f"  {server_url}")
    print(
        f"  curl -s {server_url}/v1/images/generations {bearer_header}-H 'Content-Type: "
        "application/json' \\"
    )
    print(
        f'    -d \'{{"model": "{example_base_model}", "prompt": "a red robot on the beach"}}\' \\'
    )
    print("    | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode("
          "json.load(sys.stdin)[\"data\"][0][\"b64_json\"]))' > robot.png", flush=True)  # fmt: skip
    if needs_no_key and config.host not in _LOOPBACK:
        print(
            f"warning: no API keys are set, so whoever reaches {config.host} may draw; make some "
            "with `dreambooth key NAME`",
            file=sys.stderr,
        )
