"""What the endpoint depends on: addresses, models, replicas, limits, keys. Frozen, typed."""

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from dreambooth_ray.config.adapter_mix import MAX_ADAPTERS
from dreambooth_ray.config.machines import ClusterConfig, StorageConfig
from dreambooth_ray.config.section import ID_PATTERN, PathText, Section, Text

ModelId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


class ReplicasConfig(Section):
    """Processes that sample; each runs one engine a loaded model."""

    minimum: int = Field(1, ge=0, description="0 lets the endpoint scale to zero")
    maximum: int = Field(1, ge=1, description="replicas at most")
    target_steps: int = Field(400, ge=1, description="waiting denoising steps a replica is for")
    upscale_delay_s: float = Field(
        2.0, ge=0, description="seconds of much work before one is added"
    )
    downscale_delay_s: float = Field(60.0, ge=0, description="seconds of little before one goes")
    batch: int = Field(8, ge=1, le=256, description="images that share a denoising step")
    memory_bytes: int = Field(8 * 2**30, ge=2**20, description="weights of loaded models a replica")
    adapters: int = Field(64, ge=1, description="adapters a replica keeps loaded")
    adapter_bytes: int = Field(2 * 2**30, ge=2**10, description="their files' bytes, together")
    gpus: bool = Field(False, description="one GPU for each replica, float16")

    @model_validator(mode="after")
    def _maximum_is_not_below_minimum(self) -> "ReplicasConfig":
        if self.maximum < self.minimum:
            raise ValueError(
                f"replicas.maximum={self.maximum} is below replicas.minimum={self.minimum}"
            )
        return self


class SubjectScale(Section):
    """Replicas that one subject has for itself."""

    minimum: int = Field(0, ge=0, description="0 lets them scale to zero")
    maximum: int = Field(1, ge=1, description="replicas at most")


class LimitsConfig(Section):
    """Bounds on what one request may ask."""

    images: int = Field(10, ge=1, description="n of one request")
    steps: int = Field(150, ge=1, description="num_inference_steps")
    side_px: int = Field(1024, ge=8, description="longest side of an image drawn")
    prompt_characters: int = Field(4000, ge=1, description="length of a prompt")
    body_bytes: int = Field(16 * 2**20, ge=1024, description="a whole request")
    upload_px: int = Field(2**22, ge=64, description="pixels of an uploaded image")
    deadline_s: float = Field(
        120.0, gt=0, description="a request that can't be done by then is refused"
    )
    adapters: int = Field(4, ge=0, le=MAX_ADAPTERS, description="adapters of one request")
    open_images: int = Field(512, ge=1, description="images under way; the rest is refused")

    @model_validator(mode="after")
    def _one_request_fits(self) -> "LimitsConfig":
        if self.open_images < self.images:
            raise ValueError(
                f"limits.open_images={self.open_images} is below limits.images={self.images}"
            )
        return self


class AdaptersConfig(Section):
    """Adapters of other trainers that requests may name."""

    folder: PathText | None = Field(
        None,
        description="folder or URL of .safetensors files, the same for all hosts; null takes none",
    )


class AuthConfig(Section):
    """Who may ask. Without keys the endpoint is open to everybody who reaches its port."""

    keys_file: PathText | None = Field(None, description="YAML list of keys; see `dreambooth key`")
    # Counts of requests and images; redis keeps them for several gateways.
    counts_uri: Text = Field("async+memory://", description="storage of the package `limits`")


class JobsConfig(Section):
    """Work that outlives its connection."""

    keep_s: float = Field(3600.0, gt=0, description="how long a finished job stays")
    lease_s: float = Field(15.0, gt=0, description="silence after which a job's runner is dead")
    concurrent: int = Field(32, ge=1, description="jobs one gateway has in hand")
    waiting: int = Field(1000, ge=1, description="unfinished jobs at once; the rest is refused")


class UrlsConfig(Section):
    """Images by URL, of response_format=url: signed, and readable by whoever has the URL."""

    keep_s: float = Field(
        3600.0, gt=0, le=7 * 86_400, description="how long an image and its URL are good"
    )
    base: Text | None = Field(
        None,
        pattern=r"^https?://[^/\s]+(/[^\s?#]*)?$",
        description="what URLs begin with; null is the address the request came to",
    )


class CorsConfig(Section):
    """Pages of other sites that may call the endpoint from a browser."""

    origins: tuple[Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s*]+)$")], ...] = (
        Field((), description="such as https://app.example, without a path; '*' is every site")
    )


class SafetyConfig(Section):
    """Prompts and images that are refused."""

    prompts: bool = Field(True, description="check prompts against the policy")
    policy: PathText | None = Field(None, description="policy file; none is the one that ships")
    prompt_classifier: str | None = Field(
        None, pattern=r"^[\w.]+:\w+$", description="package.module:Class, beside the policy"
    )
    images: str = Field(
        "off",
        pattern=r"^(off|yahoo-open-nsfw|diffusers|[\w.]+:\w+)$",
        description="classifier of finished images: yahoo-open-nsfw (needs the extra safety), "
        "diffusers (Stable Diffusion's own, with torch), or package.module:Class",
    )
    images_model: PathText | None = Field(
        None, description="its weights; for diffusers a directory with a safety_checker"
    )


class ProvenanceConfig(Section):
    """C2PA manifests in the images; both files in PEM form, or neither."""

    certificate: PathText | None = Field(None, description="certificate chain")
    private_key: PathText | None = Field(None, description="its key")

    @model_validator(mode="after")
    def _check_provenance_certificate_and_key(self) -> "ProvenanceConfig":
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("provenance.certificate and provenance.private_key go together")
        return self


class ServeConfig(Section):
    """Everything the endpoint depends on."""

    host: Text = Field("127.0.0.1", description="address to listen at")
    port: int = Field(8000, ge=0, le=65535, description="port to listen at; 0 takes a free one")
    models: dict[ModelId, PathText] = Field(
        {"toyworld": "toyworld"}, description="base models by id, each as model.uri"
    )
    subjects: dict[ModelId, SubjectScale] = Field({}, description="subjects with own replicas")
    gateways: int = Field(1, ge=1, description="processes that speak HTTP")
    replicas: ReplicasConfig = ReplicasConfig()
    limits: LimitsConfig = LimitsConfig()
    adapters: AdaptersConfig = AdaptersConfig()
    auth: AuthConfig = AuthConfig()
    jobs: JobsConfig = JobsConfig()
    urls: UrlsConfig = UrlsConfig()
    cors: CorsConfig = CorsConfig()
    webhook_secret_env: Text = Field(
        "DREAMBOOTH_WEBHOOK_SECRET",
        description="environment variable of the secret that signs webhooks, whsec_...",
    )
    safety: SafetyConfig = SafetyConfig()
    provenance: ProvenanceConfig = ProvenanceConfig()
    refresh_s: float = Field(
        2.0, gt=0, description="how long a subject's entry, or that there is none, is believed"
    )
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _has_a_model(self) -> "ServeConfig":
        if not self.models:
            raise ValueError("models is empty; name at least one, for example toyworld: toyworld")
        return self
