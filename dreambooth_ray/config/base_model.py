"""The section that says which model is fine-tuned."""

from typing import Literal
from urllib.parse import urlencode

from pydantic import Field

from dreambooth_ray.config.section import PathText, Section
from dreambooth_ray.config.training import Quantization


class ModelConfig(Section):
    """Which model to start from."""

    uri: PathText = Field(
        "toyworld",
        description="'toyworld' or 'toyworld-flow'; a directory, single .safetensors file, run or "
        "URL of one; or a model of the Hugging Face Hub, owner/name or owner/name@revision",
    )
    vae: PathText | None = Field(
        None, description="another VAE than the model's: as model.uri, or of such a part alone"
    )
    text_encoder: PathText | None = Field(
        None, description="another text encoder than the model's: likewise, no single file"
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what a single file predicts that does not say so, as those of 2.x"
    )
    quantization: Quantization = Field(
        "none", description="of the denoiser's frozen linear layers, under adapters"
    )

    @property
    def source(self) -> str:
        """uri, and what is not taken from there, as models are named in one text."""
        uri_query_options = {
            name: option_value
            for name in ("vae", "text_encoder", "prediction_type")
            if (option_value := getattr(self, name))
        }
        return (
            f"{self.uri}?{urlencode(uri_query_options, safe='/:@~')}"
            if uri_query_options
            else self.uri
        )
