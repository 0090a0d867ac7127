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
from serve.image_job_runner import ImageJobRunner, WebhookNotifier
from serve.image_job_store import ImageJobStore
from serve.image_service import ImageService
from serve.middleware import log_to_stderr
from serve.provenance import Signer
from serve.replica_pool import ReplicaPool
from serve.safety import Safety
from serve.signed_image_files import SignedImageFiles
from serve.subject_catalog import SubjectCatalog
from serve.webhooks import check_webhook_secret, deliver_webhook_event


def build_app_state(config: ServeConfig, handles: dict[str, Any]) -> AppState:
    """All parts of a gateway. handles: of the pools, by name.

    raises: ConfigError for keys that can't be read
    """
    authenticator, catalog, gateway_metrics = (
        Authenticator(config.auth),
        SubjectCatalog(config),
        Metrics(),
    )
    pools = {name: ReplicaPool(name, handle, config) for name, handle in handles.items()}
    signer = Signer(config.provenance) if config.provenance.certificate else None
    image_service = ImageService(
        config, catalog, pools, gateway_metrics, Safety(config.safety), signer
    )
    webhook_secret = os.environ.get(config.webhook_secret_env)
    notify_webhook = (
        _build_webhook_notifier(check_webhook_secret(webhook_secret, config.webhook_secret_env))
        if webhook_secret
        else None
    )
    job_runner = ImageJobRunner(
        config.jobs,
        ImageJobStore(config.storage.uri),
        image_service,
        gateway_metrics,
        notify_webhook,
    )
    signed_files = SignedImageFiles(config.storage.uri, config.urls.keep_s)
    return AppState(
        config,
        authenticator,
        catalog,
        pools,
        image_service,
        job_runner,
        signed_files,
        gateway_metrics,
    )


def _build_webhook_notifier(secret: str) -> WebhookNotifier:
    async def notify(url: str, event: dict[str, object]) -> bool:
        return await deliver_webhook_event(url, secret, event)

    return notify


@ray.serve.ingress()
class Gateway:
    """The HTTP side as a deployment."""

    def __init__(self, config: ServeConfig, **handles: Any) -> None:
        log_to_stderr()
        pool_names_by_key = {f"subject_{k}": name for k, name in enumerate(sorted(config.subjects))}
        handles_by_pool_name = {
            pool_names_by_key.get(key, key): handle for key, handle in handles.items()
        }
        self._app_state = build_app_state(config, handles_by_pool_name)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once this gateway is made."""
        return create_app(self._app_state, behind_serve=True)
