"""What gateway and replica say to each other. Plain data; neither HTTP nor torch."""

import hashlib
from dataclasses import dataclass, field

from PIL import Image

from dreambooth_ray.config.sampling_params import SamplingParams


@dataclass(frozen=True)
class Pixels:
    """An image between processes: mode RGB or L, and its bytes, rows from the top."""

    mode: str
    width_px: int
    height_px: int
    data: bytes

    @classmethod
    def from_pil_image(cls, image: Image.Image) -> "Pixels":
        """From a PIL image of mode RGB or L."""
        return cls(image.mode, image.width, image.height, image.tobytes())

    def to_pil_image(self) -> Image.Image:
        """As a PIL image."""
        return Image.frombytes(self.mode, (self.width_px, self.height_px), self.data)


@dataclass(frozen=True)
class Artifact:
    """Weights to sample with.

    id:              as clients name it, version included
    uri:             of a base model; None for a subject
    folder:          of a subject's bundle, below storage.uri
    manifest_sha256: of a subject's manifest, which names every file's hash
    """

    id: str
    uri: str | None = None
    folder: str | None = None
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class RequestedAdapter:
    """An adapter to sample with, beside the model itself.

    artifact: of another subject; or file: a name below adapters.folder
    sha256:   that its weights must have; None for whatever is there
    """

    weight: float
    artifact: Artifact | None = None
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ImageSamplingTask:
    """One image to sample, in the engine's terms.

    progress_interval_s: seconds between two reports of progress, at least
    """

    prompt: str
    seed: int
    negative_prompt: str
    params: SamplingParams
    width_px: int | None = None
    height_px: int | None = None
    image: Pixels | None = None
    mask: Pixels | None = None
    strength: float = 0.8
    adapters: tuple[RequestedAdapter, ...] = ()
    num_previews: int = 0
    progress_interval_s: float = 0.2

    @property
    def steps(self) -> int:
        """Denoising steps it takes."""
        if self.image is None:
            return self.params.num_inference_steps
        return max(1, round(self.params.num_inference_steps * self.strength))

    def relative_size(self, side_px: int) -> float:
        """Its pixels over those of a model's own square; 1 where the model decides."""
        return self.size_px[0] * self.size_px[1] / side_px**2 if self.size_px else 1.0

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Width and height; None where the model decides."""
        if self.width_px is None or self.height_px is None:
            return None
        return self.width_px, self.height_px

    @property
    def prompt_fingerprint(self) -> str:
        """Of the prompt, for logs that must not show it."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SamplingProgress:
    """Steps done."""

    step: int
    total: int


@dataclass(frozen=True)
class Preview:
    """How the image looks after `step`."""

    step: int
    pixels: Pixels


@dataclass(frozen=True)
class Finished:
    """The image, the weights it was sampled with, and all parameters, the model's own too.

    adapter_sha256s: of the task's adapters, in their order
    """

    pixels: Pixels
    weights_sha256: str
    params: SamplingParams
    base_sha256: str | None = None
    adapter_sha256s: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The image can't be sampled. kind: 'config', 'capacity', 'damaged' or 'internal'."""

    kind: str
    message: str


Event = SamplingProgress | Preview | Finished | Failed


@dataclass(frozen=True)
class ModelStepCost:
    """What a loaded model's steps cost.

    ids:           the model's and its adapters', as in Artifact
    side_px:       of the images it was trained on
    step_cost:     of a step at that size, in those of the model that steps_per_s is measured with
    costs_by_size: of an image of so many times the pixels, relative to that; those measured
    """

    ids: tuple[str, ...]
    side_px: int
    step_cost: float
    costs_by_size: dict[float, float]


@dataclass(frozen=True)
class ReplicaStatus:
    """What a replica does now. steps_per_s is what a full batch reaches, at its first model's size.

    Steps are counted in those.
    """

    replica: str
    steps_per_s: float
    active: int
    waiting: int
    remaining_steps: int
    steps_done: int
    loaded_bytes: int
    loaded: tuple[str, ...] = field(default=())
    models: tuple[ModelStepCost, ...] = field(default=())
