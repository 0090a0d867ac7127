"""Which images an evaluation asks for, and what they are compared by. Pure."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from dreambooth_ray.config.sampling_params import (
    GuidanceScale,
    NumInferenceSteps,
    SamplingParams,
)
from dreambooth_ray.config.section import Section, Text
from dreambooth_ray.config.yaml_text import parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.family import ModelFamily

Template = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"\{class_noun\}")]
Kind = Literal["subject", "class", "other"]
Manner = Literal["object", "live"]
CHUNK_SIZE = 8


class EncoderUris(Section):
    """URIs of the networks, by what they are used for; `encoders.load_image_encoder` reads them."""

    dino: Text = Field(description="subject fidelity, PRES and DIV")
    clip_i: Text = Field(description="subject fidelity, the second")
    clip_t: Text = Field(description="prompt fidelity; must read sentences")
    copies: Text = Field("pixels", description="memorisation")


class EvaluationProtocol(SamplingParams):
    """One way to evaluate, read from YAML."""

    name: Text
    prompts: dict[Manner, tuple[Template, ...]] = Field(min_length=1)
    live_nouns: tuple[Text, ...] = ()
    images_per_prompt: int = Field(4, ge=1)
    class_prompt: Template = "a {class_noun}"
    class_images: int = Field(40, ge=2)
    other_prompts: tuple[Text, ...] = Field((), description="what must not change")
    images_per_other: int = Field(4, ge=1)
    seed: int = Field(0, ge=0)
    num_inference_steps: NumInferenceSteps = 50
    guidance_scale: GuidanceScale = 7.5
    encoders: EncoderUris
    copy_bound: float = Field(0.9, gt=0, le=1)
    truths: bool = Field(False, description="also what the toy world knows of its images")
    max_inference_steps: int | None = Field(
        None, ge=1, description="of models that take more by themselves"
    )

    @model_validator(mode="after")
    def _refuse_empty_prompts(self) -> "EvaluationProtocol":
        if not all(self.prompts.values()):
            raise ValueError("a list of prompts is empty; leave it out, or fill it")
        return self

    def fill_sampling_defaults(
        self, family: ModelFamily, key: str = "--protocol"
    ) -> "EvaluationProtocol":
        """With the family's own values for sampling parameters that it leaves open.

        key: the setting to name in an error
        raises: ConfigError where it names a solver that the family has not
        """
        params = self.sampling_params.fill_defaults(family.sampling_defaults)
        if params.solver not in family.solvers:
            raise ConfigError(
                f"{key}={self.name!r}: solver={params.solver} is not for {family.title}; take "
                f"{', '.join(family.solvers)}, or leave it out"
            )
        sampling_values = params.model_dump()
        if self.max_inference_steps:
            num_steps = min(params.num_inference_steps, self.max_inference_steps)
            sampling_values["num_inference_steps"] = num_steps
        return self.model_copy(update=sampling_values)

    def identity_values(self) -> dict[str, Any]:
        """As of sampling parameters: evaluations keep their names when a key is added."""
        identifying_values = super().identity_values()
        if self.max_inference_steps is None:
            del identifying_values["max_inference_steps"]
        return identifying_values

    def choose_prompt_set(self, class_noun: str) -> Manner:
        """Which prompts a class noun takes."""
        is_live_noun = class_noun.lower() in self.live_nouns and "live" in self.prompts
        return "live" if is_live_noun or "object" not in self.prompts else "object"


def list_protocol_names() -> list[str]:
    """Names of the protocols that ship."""
    protocols_folder = files("dreambooth_ray.evaluation") / "protocols"
    return sorted(f.name.removesuffix(".yaml") for f in protocols_folder.iterdir())


def load_protocol(name: str, key: str = "--protocol") -> EvaluationProtocol:
    """A shipped protocol by name, or a YAML file; raises ConfigError naming what is wrong."""
    protocol_path = Path(name).expanduser()
    if protocol_path.is_file():
        protocol_text = read_text_file(protocol_path)
    elif name in list_protocol_names():
        shipped_file = files("dreambooth_ray.evaluation") / "protocols" / f"{name}.yaml"
        protocol_text = shipped_file.read_text(encoding="utf-8")
    else:
        shipped_names = ", ".join(list_protocol_names())
        raise ConfigError(f"{key}={name!r} is neither a file nor one of {shipped_names}")
    try:
        return EvaluationProtocol.model_validate(
            parse_yaml(protocol_text, f"{key}={name}", EvaluationProtocol)
        )
    except ValidationError as error:
        first_error = error.errors()[0]
        invalid_key = ".".join(str(part) for part in first_error["loc"])
        raise ConfigError(f"{key}={name!r}: {invalid_key}: {first_error['msg']}") from error


@dataclass(frozen=True)
class EvaluationPrompt:
    """One image to generate. plain_prompt: without the identifier, to compare the image with."""

    kind: Kind
    prompt: str
    plain_prompt: str
    seed: int


@dataclass(frozen=True)
class EvaluationSpec:
    """All that an evaluation's numbers depend on."""

    protocol: EvaluationProtocol
    model_hash: str
    identifier: str
    class_noun: str
    photographs: tuple[str, ...]
    size_px: int | None

    def as_json(self) -> dict[str, object]:
        """For a file, so that people can repeat it."""
        return {**asdict(self), "protocol": self.protocol.identity_values()}

    @property
    def digest(self) -> str:
        """Name of the evaluation: equal ones share their images."""
        spec_text = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.sha256(spec_text.encode()).hexdigest()[:16]


def build_evaluation_prompts(spec: EvaluationSpec) -> list[EvaluationPrompt]:
    """Every image of an evaluation, in its order; a pure function of the specification."""
    protocol, prompts = spec.protocol, []

    def append_template_prompts(kind: Kind, prompt_template: str, count: int) -> None:
        template_with_class = prompt_template.replace("{class_noun}", spec.class_noun)
        plain_prompt = " ".join(template_with_class.replace("{identifier}", "").split())
        prompt = " ".join(template_with_class.replace("{identifier}", spec.identifier).split())
        for k in range(count):
            prompts.append(
                EvaluationPrompt(
                    kind, prompt, plain_prompt, sampling_seed(protocol.seed, kind, prompt, k)
                )
            )

    for prompt_template in protocol.prompts[protocol.choose_prompt_set(spec.class_noun)]:
        append_template_prompts("subject", prompt_template, protocol.images_per_prompt)
    append_template_prompts("class", protocol.class_prompt, protocol.class_images)
    for prompt_template in protocol.other_prompts:
        if prompt_template != protocol.class_prompt.replace("{class_noun}", spec.class_noun):
            append_template_prompts("other", prompt_template, protocol.images_per_other)
    return prompts


def sampling_seed(seed: int, kind: str, prompt: str, index: int) -> int:
    """The seed of the image of this index, of a protocol's seed, kind of prompt and prompt."""
    seed_text = f"{seed}/evaluation/{kind}/{prompt}/{index}"
    return (
        int.from_bytes(hashlib.blake2b(seed_text.encode(), digest_size=8).digest(), "little") >> 1
    )


def split_image_chunks(count: int) -> list[range]:
    """Indices of the images that are generated and committed together."""
    return [range(k, min(k + CHUNK_SIZE, count)) for k in range(0, count, CHUNK_SIZE)]
