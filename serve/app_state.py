"""What every route has: the gateway's parts, and who calls."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from dreambooth_ray.config.serving import ServeConfig
from serve.api_messages import ErrorAnswer
from serve.auth import Authenticator, Caller
from serve.gateway_metrics import Metrics
from serve.image_job_runner import ImageJobRunner
from serve.image_service import ImageService
from serve.replica_pool import ReplicaPool
from serve.signed_image_files import SignedImageFiles
from serve.subject_catalog import SubjectCatalog

# How the OpenAPI document describes what routes refuse.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 415, 422, 429, 503)
}


@dataclass
class AppState:
    """What the routes need; one instance a gateway."""

    config: ServeConfig
    authenticator: Authenticator
    catalog: SubjectCatalog
    pools: dict[str, ReplicaPool]
    image_service: ImageService
    job_runner: ImageJobRunner
    signed_files: SignedImageFiles
    metrics: Metrics


_bearer = HTTPBearer(auto_error=False)


def get_app_state(request: Request) -> AppState:
    """The gateway that a request has come to."""
    app_state: AppState = request.app.state.app_state
    return app_state


async def _identify_caller(
    request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    app_state = get_app_state(request)
    address = request.client.host if request.client else "unknown"
    authorization = f"{key.scheme} {key.credentials}" if key else None
    caller = app_state.authenticator.identify_caller(authorization, address)
    request.state.caller = caller.id
    await app_state.authenticator.enforce_request_rate(caller)
    return caller


AppStateDep = Annotated[AppState, Depends(get_app_state)]
CallerDep = Annotated[Caller, Depends(_identify_caller)]
