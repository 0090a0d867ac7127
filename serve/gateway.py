"""HTTP: routes, and nothing else. What they mean is in image_service.py and image_job_runner.py."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.version import __version__
from serve import image_job_routes, multipart, provenance
from serve.api_errors import APIError, storage_away_error
from serve.api_messages import (
    EditRequest,
    ErrorAnswer,
    GenerationRequest,
    ImageRequest,
    ImagesAnswer,
    ModelAnswer,
    ModelsAnswer,
)
from serve.app_state import ERRORS, AppState, AppStateDep, CallerDep, get_app_state
from serve.auth import Caller
from serve.error_handlers import add_error_handlers
from serve.generation_spec import EditUpload
from serve.image_answers import build_images_answer_json, require_base64_response_format
from serve.image_event_stream import EventStreamResponse, Operation, stream_image_events
from serve.image_service import DEFAULT_POOL
from serve.middleware import RequestMiddleware
from serve.signed_image_files import ROUTE as FILES_ROUTE

PAGE = Path(__file__).parent / "page"
_router = APIRouter(responses=ERRORS)


@_router.get("/v1/models")
async def list_models(
    app_state: AppStateDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="models at most")] = 100,
    after: Annotated[
        str | None, Query(max_length=120, description="`last_id` of the page before")
    ] = None,
) -> ModelsAnswer:
    """What can be drawn with, page by page: base models, then subjects in a fixed order."""
    return await app_state.catalog.list_models_page(limit, after, caller)


@_router.get("/v1/models/{model}")
async def get_model(model: str, app_state: AppStateDep, caller: CallerDep) -> ModelAnswer:
    """One of them; `subject@version` is answered as well."""
    return await app_state.catalog.describe_model(model, caller.may_see_subject)


@_router.post(
    "/v1/images/generations",
    response_model=ImagesAnswer,
    dependencies=[Depends(multipart.check_json_type)],
)
async def generate(
    request: Request, body: GenerationRequest, app_state: AppStateDep, caller: CallerDep
) -> Response:
    """Draw from a prompt."""
    return await _generate_images(request, caller, body, None, "image_generation")


@_router.post(
    "/v1/images/edits",
    response_model=ImagesAnswer,
    openapi_extra=multipart.build_request_schema(EditRequest),
)
async def edit(request: Request, caller: CallerDep) -> Response:
    """Draw on from an image; with a mask, only where the mask says."""
    body, upload = await multipart.read_form(request, EditRequest)
    return await _generate_images(request, caller, body, upload, "image_edit")


async def _generate_images(
    request: Request,
    caller: Caller,
    body: ImageRequest,
    upload: EditUpload | None,
    operation: Operation,
) -> Response:
    app_state = get_app_state(request)
    if body.stream:
        require_base64_response_format(body, "streams: their events have the image itself")
    spec = await app_state.image_service.resolve_request(caller, body, upload)
    await app_state.authenticator.enforce_daily_image_limit(caller, body.n)
    reservations = app_state.image_service.admit(spec)
    if body.stream:
        return EventStreamResponse(
            stream_image_events(app_state.image_service, spec, reservations, operation),
            reservations,
        )
    encoded_images = await app_state.image_service.generate_before_deadline(spec, reservations)
    answer_json = await build_images_answer_json(
        request, app_state.signed_files, app_state.config.urls.base, body, encoded_images
    )
    return Response(answer_json, media_type="application/json")


@_router.get(
    FILES_ROUTE + "/{name}", response_class=Response, responses={403: {"model": ErrorAnswer}}
)
async def get_file(
    name: str, app_state: AppStateDep, signature: Annotated[str, Query(max_length=128)] = ""
) -> Response:
    """An image of an answer with response_format=url; asks for no key, the URL is one."""
    try:
        image_bytes = await asyncio.to_thread(app_state.signed_files.read, name, signature)
    except (StorageError, OSError) as error:
        raise storage_away_error() from error
    return Response(image_bytes, media_type=f"image/{name.rpartition('.')[2]}")


@_router.post("/v1/provenance")
async def check_provenance(
    image: UploadFile, app_state: AppStateDep, caller: CallerDep
) -> dict[str, Any]:
    """What an image says of its origin, and whether it is as it was signed."""
    image_bytes = await image.read()
    try:
        return await asyncio.to_thread(provenance.read_provenance, image_bytes)
    except ConfigError as error:
        raise APIError(400, "invalid_value", str(error), param="image") from error


@_router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process lives."""
    return {"status": "ok"}


@_router.get("/readyz")
async def readyz(app_state: AppStateDep) -> dict[str, Any]:
    """Whether images can be drawn: a replica has drawn one, and is there or can be woken."""
    pool = app_state.pools[DEFAULT_POOL]
    is_pool_available = pool.admission.replicas or not app_state.config.replicas.minimum
    if not pool.has_been_ready or not is_pool_available:
        raise APIError(503, "not_ready", "no replica can draw yet; come again", retry_after_s=2)
    return {
        "status": "ready",
        "replicas": {p.name: p.admission.replicas for p in app_state.pools.values()},
    }


@_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(app_state: AppStateDep) -> PlainTextResponse:
    """Counters and gauges for Prometheus."""
    for pool in app_state.pools.values():
        app_state.metrics.set_pool_gauges(pool)
    return PlainTextResponse(
        app_state.metrics.format_prometheus(), media_type="text/plain; version=0.0.4"
    )


async def _end_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library may swallow one cancellation."""
    running_tasks = set(tasks)
    while running_tasks:
        for task in running_tasks:
            task.cancel()
        _, running_tasks = await asyncio.wait(running_tasks, timeout=1)
    # What they ended with was logged where it came up.
    await asyncio.gather(*tasks, return_exceptions=True)


def create_app(app_state: AppState, *, behind_serve: bool = False) -> FastAPI:
    """The ASGI application of a gateway. behind_serve: Ray Serve's proxy is in front of it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        background_tasks = [
            asyncio.create_task(background_coroutine)
            for background_coroutine in (
                app_state.catalog.start_catalog_rebuild(),
                app_state.job_runner.watch_jobs(),
                app_state.signed_files.remove_expired_images_forever(),
                *(pool.watch_replicas() for pool in app_state.pools.values()),
            )
        ]
        yield
        await _end_tasks(background_tasks)

    app = FastAPI(
        title="dreambooth",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # the middleware passes them over
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.app_state = app_state
    app.include_router(_router)
    app.include_router(image_job_routes.router)
    add_error_handlers(app, app_state.metrics)
    if (PAGE / "index.html").is_file():
        app.add_api_route("/", _show_web_page, include_in_schema=False)
        app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(
        RequestMiddleware,
        metrics=app_state.metrics,
        body_bytes=app_state.config.limits.body_bytes,
        behind_serve=behind_serve,
    )
    if app_state.config.cors.origins:
        # Outermost, so that a page elsewhere can read refusals as well.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=app_state.config.cors.origins,
            allow_methods=["DELETE", "GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    return app


async def _show_web_page() -> FileResponse:
    return FileResponse(PAGE / "index.html")
