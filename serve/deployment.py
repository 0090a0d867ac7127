"""The HTTP side as a deployment: all its parts put together, in a process without torch."""

import os
from typing import Any

import ray.serve
from fastapi import FastAPI

from dreambooth_ray.config.serving import ServeConfig
from serve.auth import Authenticator
from serve.gateway import AppState, create_app
from serve.gateway_metrics import Metrics
from serve.image_service import ImageService
from serve.job_runner import Notify, Runner
from serve.job_store import JobStore
from serve.middleware import log_to_stderr
from serve.provenance import Signer
from serve.replica_pool import ReplicaPool
from serve.safety import Safety
from serve.subject_catalog import Catalog
from serve.webhooks import check_secret, deliver


def build_app_state(config: ServeConfig, handles: dict[str, Any]) -> AppState:
    """All parts of a gateway. handles: of the pools, by name.

    raises: ConfigError for keys that can't be read
    """
    guard, catalog, metrics = Authenticator(config.auth), Catalog(config), Metrics()
    pools = {name: ReplicaPool(name, handle, config) for name, handle in handles.items()}
    sealing = Signer(config.provenance) if config.provenance.certificate else None
    studio = ImageService(config, catalog, pools, metrics, Safety(config.safety), sealing)
    secret = os.environ.get(config.webhook_secret_env)
    notify = _notifier(check_secret(secret, config.webhook_secret_env)) if secret else None
    runner = Runner(config.jobs, JobStore(config.storage.uri), studio, metrics, notify)
    return AppState(config, guard, catalog, pools, studio, runner, metrics)


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
        self._house = build_app_state(config, pools)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once this gateway is made."""
        return create_app(self._house, behind_serve=True)
