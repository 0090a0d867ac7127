"""A painter as an actor: loaded where it paints, not by the process that asks for it."""

from typing import TYPE_CHECKING, Any

from dreambooth_ray.imports import large_imports

if TYPE_CHECKING:
    from dreambooth_ray.data.prior_set import Record
    from dreambooth_ray.priors.prior_spec import PriorSpec


class PriorWorkerActor:
    """A Painter; what it needs takes seconds to import, and only the actor's process does."""

    def __init__(
        self,
        directory: str,
        set_uri: str,
        spec: "PriorSpec",
        gpu: bool,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        with large_imports():
            from dreambooth_ray.priors.prior_worker import PriorWorker  # noqa: PLC0415  see above

        self._painter = PriorWorker(directory, set_uri, spec, gpu, storage_options)

    def ready(self) -> bool:
        """True once the model is loaded."""
        return True

    def paint(self, number: int, images: list[bytes] | None = None) -> list["Record"]:
        """As the Painter."""
        return self._painter.paint(number, images)
