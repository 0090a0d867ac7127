"""Fields of OpenAI's Images API that leave the image to the endpoint, at the values that do."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator


class IgnoredClientFields(BaseModel):
    """What clients send without asking for anything; what would change the image is refused.

    Read by nobody, and in no dump.
    """

    quality: Literal["auto", "standard"] = Field(
        "auto", exclude=True, description="for more of it set num_inference_steps"
    )
    style: Literal["vivid"] = Field(
        "vivid", exclude=True, description="their default; the prompt says the style here"
    )
    background: Literal["auto", "opaque"] = Field("auto", exclude=True)
    moderation: Literal["auto", "low"] = Field(
        "auto", exclude=True, description="the endpoint's policy holds with either"
    )
    input_fidelity: Literal["low"] = Field(
        "low", exclude=True, description="of edits; strength says it here"
    )
    user: Annotated[str, StringConstraints(max_length=1000)] = Field("", exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """A field that is null is one left out: OpenAI's schema has it so for most of them."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}
