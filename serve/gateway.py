"""HTTP: routes, and nothing else. What they mean is the studio's and the runner's business."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import dreambooth_ray
from dreambooth_ray.config.serving import ServeConfig
from dreambooth_ray.errors import ConfigError
from serve import multipart, provenance
from serve.api_errors import APIError
from serve.api_messages import (
    Drawable,
    EditJobRequest,
    EditRequest,
    ErrorAnswer,
    GenerationRequest,
    ImageAnswer,
    ImagesAnswer,
    JobAnswer,
    JobRequest,
    ModelAnswer,
    ModelsAnswer,
)
from serve.auth import Authenticator, Caller
from serve.event_stream import Kind, StreamedAnswer, stream
from serve.gateway_metrics import Metrics
from serve.image_service import DEFAULT_POOL, ImageService, Upload
from serve.job_runner import Runner
from serve.middleware import RequestMiddleware
from serve.replica_pool import ReplicaPool
from serve.subject_catalog import Catalog

PAGE = Path(__file__).parent / "page"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 415, 422, 429, 503)
}


@dataclass
class AppState:
    """What the routes need, made once a gateway."""

    config: ServeConfig
    guard: Authenticator
    catalog: Catalog
    pools: dict[str, ReplicaPool]
    studio: ImageService
    runner: Runner
    metrics: Metrics


_router = APIRouter(responses=_ERRORS)
_bearer = HTTPBearer(auto_error=False)


def _house(request: Request) -> AppState:
    house: AppState = request.app.state.house
    return house


async def _caller(
    request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    house = _house(request)
    address = request.client.host if request.client else "unknown"
    authorization = f"{key.scheme} {key.credentials}" if key else None
    caller = house.guard.identify(authorization, address)
    request.state.caller = caller.id
    await house.guard.count_request(caller)
    return caller


InHouse = Annotated[AppState, Depends(_house)]
Known = Annotated[Caller, Depends(_caller)]


@_router.get("/v1/models")
async def list_models(house: InHouse, caller: Known) -> ModelsAnswer:
    """What can be drawn with."""
    await house.catalog.refresh(house.config.refresh_s)
    return ModelsAnswer(data=house.catalog.answers(caller.may_see))


@_router.get("/v1/models/{model}")
async def get_model(model: str, house: InHouse, caller: Known) -> ModelAnswer:
    """One of them; `subject@version` is answered as well."""
    return house.catalog.answer(await house.catalog.resolve(model, caller.may_see))


@_router.post("/v1/images/generations", response_model=ImagesAnswer)
async def generate(body: GenerationRequest, house: InHouse, caller: Known) -> Response:
    """Draw from a prompt."""
    return await _answer(house, caller, body, None, "image_generation")


@_router.post(
    "/v1/images/edits", response_model=ImagesAnswer, openapi_extra=multipart.schema(EditRequest)
)
async def edit(request: Request, house: InHouse, caller: Known) -> Response:
    """Draw on from an image; with a mask, only where the mask says."""
    body, upload = await multipart.read(request, EditRequest)
    return await _answer(house, caller, body, upload, "image_edit")


async def _answer(
    house: AppState, caller: Caller, body: Drawable, upload: Upload | None, kind: Kind
) -> Response:
    order = await house.studio.order(caller, body, upload)
    await house.guard.count_images(caller, body.n)
    turns = house.studio.enter(order)
    if body.stream:
        return StreamedAnswer(stream(house.studio, order, turns, kind), turns)
    rendered = await house.studio.draw_in_time(order, turns)
    images = [
        ImageAnswer(b64_json=base64.b64encode(r.data).decode(), receipt=r.receipt) for r in rendered
    ]
    size = f"{rendered[0].receipt.width}x{rendered[0].receipt.height}"
    answer = ImagesAnswer(
        created=int(time.time()), data=images, output_format=body.output_format, size=size
    )
    return Response(answer.model_dump_json(), media_type="application/json")


@_router.post(
    "/v1/jobs",
    status_code=202,
    openapi_extra=multipart.schema(EditJobRequest, also_json=JobRequest),
)
async def submit_job(request: Request, house: InHouse, caller: Known) -> JobAnswer:
    """Draw without waiting: a generation as JSON, or an edit as a form."""
    body: JobRequest | EditJobRequest
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        body, upload = await multipart.read(request, EditJobRequest)
    else:
        body, upload = await multipart.read_json(request, JobRequest), None
    await house.guard.count_images(caller, body.n)
    return await house.runner.submit(caller, body, upload)


@_router.get("/v1/jobs/{job}")
async def get_job(job: str, house: InHouse, caller: Known) -> JobAnswer:
    """Where a job stands."""
    return await house.runner.answer(await house.runner.find(caller, job))


@_router.delete("/v1/jobs/{job}")
async def cancel_job(job: str, house: InHouse, caller: Known) -> JobAnswer:
    """Stop a job; what it has finished stays."""
    return await house.runner.cancel(await house.runner.find(caller, job))


@_router.get("/v1/jobs/{job}/files/{name}", response_class=Response)
async def get_job_file(job: str, name: str, house: InHouse, caller: Known) -> Response:
    """An image of a job."""
    data = await house.runner.file(await house.runner.find(caller, job), name)
    return Response(data, media_type=f"image/{name.rpartition('.')[2]}")


@_router.post("/v1/provenance")
async def check_provenance(image: UploadFile, house: InHouse, caller: Known) -> dict[str, Any]:
    """What an image says of its origin, and whether it is as it was signed."""
    data = await image.read()
    try:
        return await asyncio.to_thread(provenance.read, data)
    except ConfigError as error:
        raise APIError(400, "invalid_value", str(error), param="image") from error


@_router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process lives."""
    return {"status": "ok"}


@_router.get("/readyz")
async def readyz(house: InHouse) -> dict[str, Any]:
    """Whether images can be drawn: a replica has drawn one, and is there or can be woken."""
    pool = house.pools[DEFAULT_POOL]
    awake = pool.desk.replicas or not house.config.replicas.minimum
    if not pool.has_drawn or not awake:
        raise APIError(503, "not_ready", "no replica can draw yet; come again", retry_after_s=2)
    return {"status": "ready", "replicas": {p.name: p.desk.replicas for p in house.pools.values()}}


@_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(house: InHouse) -> PlainTextResponse:
    """Counters and gauges for Prometheus."""
    for pool in house.pools.values():
        house.metrics.show(pool)
    return PlainTextResponse(house.metrics.text(), media_type="text/plain; version=0.0.4")


def create_app(house: AppState, *, behind_serve: bool = False) -> FastAPI:
    """The ASGI application of a gateway. behind_serve: Ray Serve's proxy is in front of it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watches = [
            asyncio.create_task(watch)
            for watch in (
                house.catalog.watch(),
                house.runner.watch(),
                *(pool.watch() for pool in house.pools.values()),
            )
        ]
        yield
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    app = FastAPI(
        title="dreambooth",
        version=dreambooth_ray.__version__,
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.house = house
    app.include_router(_router)
    _handle_errors(app, house.metrics)
    if (PAGE / "index.html").is_file():
        app.mount("/page", StaticFiles(directory=PAGE))
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_middleware(
        RequestMiddleware,
        metrics=house.metrics,
        body_bytes=house.config.limits.body_bytes,
        behind_serve=behind_serve,
    )
    return app


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    """Every error in OpenAI's form."""

    def answer(refusal: APIError) -> JSONResponse:
        metrics.refusals.labels(refusal.code).inc()
        return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)

    @app.exception_handler(APIError)
    async def refused(request: Request, error: APIError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(multipart.invalid(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
        code = codes.get(error.status_code, "invalid_request")
        return answer(APIError(error.status_code, code, str(error.detail)))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        text = "something broke here; the request id is in the logs"
        return answer(APIError(500, "internal_error", text))
