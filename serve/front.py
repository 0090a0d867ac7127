"""The HTTP side as a deployment: all its parts put together, in a process without torch."""

import os
from typing import Any

import ray.serve
from fastapi import FastAPI

from dreambooth_ray.config.serving import ServeConfig
from serve.auth import Guard
from serve.envelope import log_to_stderr
from serve.gateway import House, create_app
from serve.jobs import Jobs
from serve.metrics import Metrics
from serve.pool import Pool
from serve.provenance import Signer
from serve.runner import Notify, Runner
from serve.safety import Safety
from serve.studio import Studio
from serve.subjects import Catalog
from serve.webhooks import check_secret, deliver


def open_house(config: ServeConfig, handles: dict[str, Any]) -> House:
    """All parts of a gateway. handles: of the pools, by name.

    raises: ConfigError for keys that can't be read
    """
    guard, catalog, metrics = Guard(config.auth), Catalog(config), Metrics()
    pools = {name: Pool(name, handle, config) for name, handle in handles.items()}
    sealing = Signer(config.provenance) if config.provenance.certificate else None
    studio = Studio(config, catalog, pools, metrics, Safety(config.safety), sealing)
    secret = os.environ.get(config.webhook_secret_env)
    notify = _notifier(check_secret(secret, config.webhook_secret_env)) if secret else None
    runner = Runner(config.jobs, Jobs(config.storage.uri), studio, metrics, notify)
    return House(config, guard, catalog, pools, studio, runner, metrics)


def _notifier(secret: str) -> Notify:
    async def notify(url: str, event: dict[str, object]) -> bool:
        return await deliver(url, secret, event)

    return notify


@ray.serve.ingress()
class Gateway:
    """The HTTP side as a deployment."""

    def __init__(self, config: ServeConfig, **handles: Any) -> None:
        log_to_stderr()
        names = {f"subject_{k}": name for k, name in enumerate(sorted(config.subjects))}
        pools = {names.get(key, key): handle for key, handle in handles.items()}
        self._house = open_house(config, pools)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once this gateway is made."""
        return create_app(self._house, behind_serve=True)
