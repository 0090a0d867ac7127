"""PriorWorker as an actor: its imports are loaded in the actor's process alone."""

from typing import TYPE_CHECKING, Any

from dreambooth_ray.imports import pause_garbage_collection

if TYPE_CHECKING:
    from dreambooth_ray.data.prior_set import PriorImageRecord
    from dreambooth_ray.priors.prior_spec import PriorSpec


class PriorWorkerActor:
    """A PriorWorker; its imports take seconds, and only the actor's process needs them."""

    def __init__(
        self,
        directory: str,
        set_uri: str,
        spec: "PriorSpec",
        gpu: bool,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._arguments = directory, set_uri, spec, gpu, storage_options

    def ready(self) -> bool:
        """Load the model; True once it is."""
        with pause_garbage_collection():
            from dreambooth_ray.priors.prior_worker import PriorWorker  # noqa: PLC0415  see above

        self._worker = PriorWorker(*self._arguments)
        return True

    def generate(
        self, number: int, image_files: list[bytes] | None = None
    ) -> list["PriorImageRecord"]:
        """See PriorWorker."""
        return self._worker.generate(number, image_files)
