"""The adapters that a request names, as replicas are told of them."""

from collections.abc import Iterable

from serve.api_errors import APIError
from serve.api_messages import AdapterChoice
from serve.auth import Caller
from serve.replica_messages import RequestedAdapter
from serve.subject_catalog import SubjectCatalog


async def resolve_adapters(
    catalog: SubjectCatalog, caller: Caller, choices: Iterable[AdapterChoice]
) -> tuple[RequestedAdapter, ...]:
    """Subjects are resolved to their versions of now; files are the replicas' business.

    raises: APIError for a subject that is not there, not the caller's, or a whole model
    """
    adapter_tasks = []
    for choice in choices:
        artifact = None
        if choice.model is not None:
            subject = await catalog.resolve_served_subject(choice.model, caller.may_see_subject)
            if subject.kind != "adapter":
                error_message = f"adapters: model={choice.model!r} is no adapter but a whole model"
                raise APIError(400, "invalid_value", error_message, param="adapters")
            artifact = subject.artifact
        adapter_tasks.append(RequestedAdapter(choice.weight, artifact, choice.file, choice.sha256))
    return tuple(adapter_tasks)
