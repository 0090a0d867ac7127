"""The parameters of one image's sampling: declared, bounded and documented here alone.

Whatever samples inherits them as its keys, or carries them as one object: a field added here
becomes an option of `dreambooth generate`, a key of prior, sample and protocols, a field of the
endpoint's requests and of receipts.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from dreambooth_ray.config.section import Section
from dreambooth_ray.config.validation_errors import explain_error
from dreambooth_ray.errors import ConfigError

Solver = Literal["ddim", "plms", "euler", "euler_a", "heun", "dpmpp_2m", "lcm", "tcd"]
# Whose steps add as much noise as eta says.
ETA_SOLVERS = ("ddim", "tcd")
KARRAS_SOLVERS = ("euler", "dpmpp_2m")
MAX_STEPS = 1000
# These are in every digest; the others where they differ from their defaults, so that sets of
# images keep their names when a parameter is added.
_ALWAYS_IN_IDENTITY = ("solver", "num_inference_steps", "guidance_scale")


def _split_number_pair(value: object) -> object:
    """Two numbers written as text, "0.2, 0.8" or "[0.2, 0.8]": form fields have no lists."""
    return value.strip(" ()[]").split(",") if isinstance(value, str) else value


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
StepInterval = Annotated[int, Field(ge=1, le=MAX_STEPS)]
# Of their own, for sections with another default.
NumInferenceSteps = Annotated[int, Field(ge=1, le=MAX_STEPS, description="denoising steps")]
GuidanceScale = Annotated[
    float,
    Field(
        ge=1,
        le=100,
        allow_inf_nan=False,
        description="weight of classifier-free guidance, 1 is none (Ho & Salimans 2022, "
        "arXiv 2207.12598); FLUX.1 dev is told the number",
    ),
]


class SamplingParams(Section):
    """How one image is sampled, whatever its prompt, seed and size."""

    solver: Solver = Field(
        "ddim",
        description="integrates the steps; dpmpp_2m needs the fewest; lcm and tcd are for models "
        "distilled for them alone; models of flow matching take euler, heun and dpmpp_2m",
    )
    num_inference_steps: NumInferenceSteps = 25
    guidance_scale: GuidanceScale = 3.0
    eta: Fraction = Field(
        0.0,
        description="noise added by each step: 0 none; of ddim, 1 as DDPM; of tcd, its gamma",
    )
    karras: bool = Field(
        False, description="sigmas after Karras et al. 2022, eq. 5; euler and dpmpp_2m"
    )
    guidance_rescale: Fraction = Field(
        0.0, description="0 off, to 1 (Lin et al. 2023, arXiv 2305.08891, section 3.4)"
    )
    guidance_interval: Annotated[tuple[Fraction, Fraction], BeforeValidator(_split_number_pair)] = (
        Field(
            (0.0, 1.0),
            description="start and end of guidance, fractions of the denoising (Kynkäänniemi et "
            "al. 2024, arXiv 2404.07724)",
        )
    )
    guidance_every: StepInterval = Field(
        1, description="steps between unconditional predictions; 1 is exact"
    )
    cache_every: StepInterval = Field(
        1, description="steps between whole UNet forwards (DeepCache, arXiv 2312.00858); 1 is exact"
    )
    clip_skip: int = Field(0, ge=0, le=100, description="last text encoder layers left out")

    @field_validator("eta")
    @classmethod
    def _check_eta_solver(cls, eta: float, info: ValidationInfo) -> float:
        solver = info.data.get("solver", "ddim")
        if eta and solver not in ETA_SOLVERS:
            raise ValueError(f"is for solvers {', '.join(ETA_SOLVERS)}, not {solver}")
        return eta

    @field_validator("karras")
    @classmethod
    def _check_karras_solver(cls, karras: bool, info: ValidationInfo) -> bool:
        solver = info.data.get("solver", KARRAS_SOLVERS[0])
        if karras and solver not in KARRAS_SOLVERS:
            raise ValueError(f"is for solvers {', '.join(KARRAS_SOLVERS)}, not {solver}")
        return karras

    @field_validator("guidance_interval")
    @classmethod
    def _starts_before_its_end(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if interval[0] >= interval[1]:
            raise ValueError("start must be below end")
        return interval

    @property
    def sampling_params(self) -> "SamplingParams":
        """These alone, of a class that has inherited them."""
        param_values = {
            param_name: getattr(self, param_name) for param_name in SamplingParams.model_fields
        }
        fields_set = self.model_fields_set & param_values.keys()
        return SamplingParams.model_construct(fields_set, **param_values)

    @property
    def given_values(self) -> dict[str, Any]:
        """Those that somebody has set: the others are the model's own choice."""
        given_param_names = self.model_fields_set & SamplingParams.model_fields.keys()
        return {
            param_name: getattr(self, param_name)
            for param_name in SamplingParams.model_fields
            if param_name in given_param_names
        }

    def fill_defaults(self, defaults: Mapping[str, Any]) -> "SamplingParams":
        """All values, those that nobody has set by a model's own defaults.

        raises: ConfigError where one does not go with what is set
        """
        param_values = {
            param_name: getattr(self, param_name) for param_name in SamplingParams.model_fields
        }
        return build_sampling_params({**param_values, **defaults, **self.given_values})

    def identity_values(self) -> dict[str, Any]:
        """All values as JSON, to make a digest of; see _ALWAYS_IN_IDENTITY."""
        param_values = self.model_dump(mode="json")
        for param_name in SamplingParams.model_fields.keys() - set(_ALWAYS_IN_IDENTITY):
            if getattr(self, param_name) == type(self).model_fields[param_name].default:
                del param_values[param_name]
        return param_values


def build_sampling_params(values: dict[str, Any]) -> SamplingParams:
    """From values by name; raises ConfigError naming the one at fault."""
    try:
        return SamplingParams.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(explain_error(e) for e in error.errors())) from error
