"""HTTP: the routes of jobs. What they mean is in image_job_runner.py."""

from fastapi import APIRouter, Request, Response

from serve import multipart
from serve.api_messages import EditJobRequest, JobAnswer, JobRequest
from serve.app_state import ERRORS, AppStateDep, CallerDep

router = APIRouter(responses=ERRORS)


@router.post(
    "/v1/jobs",
    status_code=202,
    openapi_extra=multipart.build_request_schema(EditJobRequest, also_json=JobRequest),
)
async def submit_job(request: Request, app_state: AppStateDep, caller: CallerDep) -> JobAnswer:
    """Draw without waiting: a generation as JSON, or an edit as a form."""
    body: JobRequest | EditJobRequest
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        body, upload = await multipart.read_form(request, EditJobRequest)
    else:
        body, upload = await multipart.read_json(request, JobRequest), None
    await app_state.authenticator.enforce_daily_image_limit(caller, body.n)
    return await app_state.job_runner.submit(caller, body, upload)


@router.get("/v1/jobs/{job}")
async def get_job(job: str, app_state: AppStateDep, caller: CallerDep) -> JobAnswer:
    """Where a job stands."""
    return await app_state.job_runner.build_answer(await app_state.job_runner.find_job(caller, job))


@router.delete("/v1/jobs/{job}")
async def cancel_job(job: str, app_state: AppStateDep, caller: CallerDep) -> JobAnswer:
    """Stop a job; what it has finished stays."""
    return await app_state.job_runner.cancel(await app_state.job_runner.find_job(caller, job))


@router.get("/v1/jobs/{job}/files/{name}", response_class=Response)
async def get_job_file(job: str, name: str, app_state: AppStateDep, caller: CallerDep) -> Response:
    """An image of a job."""
    image_bytes = await app_state.job_runner.read_job_image(
        await app_state.job_runner.find_job(caller, job), name
    )
    return Response(image_bytes, media_type=f"image/{name.rpartition('.')[2]}")
