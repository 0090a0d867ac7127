"""The HTTP side as a deployment: all its parts put together, in a process without torch."""

import os
from typing import Any

import ray.serve
from fastapi import FastAPI

from dreambooth_ray.config.serving import ServeConfig
from serve.app_state import AppState
from serve.auth import Authenticator
from serve.gateway import create_app
from serve.gateway_metrics import Metrics
from serve.image_service import ImageService
from serve.job_runner import JobRunner, WebhookNotifier
from serve.job_store import JobStore
from serve.middleware import log_to_stderr
from serve.provenance import Signer
from serve.replica_pool import ReplicaPool
from serve.safety import Safety
from serve.signed_files import SignedFiles
from serve.subject_catalog import SubjectCatalog
from serve.webhooks import check_secret, deliver_event


def build_app_state(config: ServeConfig, handles: dict[str, Any]) -> AppState:
    """All parts of a gateway. handles: of the pools, by name.

    raises: ConfigError for keys that can't be read
    """
    authenticator, catalog, metrics = Authenticator(config.auth), SubjectCatalog(config), Metrics()
    pools = {name: ReplicaPool(name, handle, config) for name, handle in handles.items()}
    signer = Signer(config.provenance) if config.provenance.certificate else None
    image_service = ImageService(config, catalog, pools, metrics, Safety(config.safety), signer)
    webhook_secret = os.environ.get(config.webhook_secret_env)
    notify_webhook = (
        _build_notifier(check_secret(webhook_secret, config.webhook_secret_env))
        if webhook_secret
        else None
    )
    job_runner = JobRunner(
        config.jobs, JobStore(config.storage.uri), image_service, metrics, notify_webhook
    )
    signed_files = SignedFiles(config.storage.uri, config.urls.keep_s)
    return AppState(
        config, authenticator, catalog, pools, image_service, job_runner, signed_files, metrics
    )


def _build_notifier(secret: str) -> WebhookNotifier:
    async def notify(url: str, event: dict[str, object]) -> bool:
        return await deliver_event(url, secret, event)

    return notify


@ray.serve.ingress()
class Gateway:
    """The HTTP side as a deployment."""

    def __init__(self, config: ServeConfig, **handles: Any) -> None:
        log_to_stderr()
        pool_names = {f"subject_{k}": name for k, name in enumerate(sorted(config.subjects))}
        pools = {pool_names.get(key, key): handle for key, handle in handles.items()}
        self._app_state = build_app_state(config, pools)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once this gateway is made."""
        return create_app(self._app_state, behind_serve=True)
