"""FLUX.2 dev: FLUX.2's transformer, told guidance, and three layers of a Mistral 3 as text."""

from pathlib import Path

from dreambooth_ray.models.families.flux2_checks import check_networks
from dreambooth_ray.models.families.flux2_family import make_flux2_family
from dreambooth_ray.models.family import TextEncoderPart
from dreambooth_ray.models.mistral3_checks import check_mistral3
from dreambooth_ray.models.pipeline_checks import check_parts

# Hidden states of the language model that are joined, 0 its embeddings: the pipeline's default.
TEXT_LAYERS = (10, 20, 30)


def _check_directory(directory: Path) -> None:
    check_parts(directory, FAMILY)
    check_networks(
        directory,
        FAMILY,
        lambda: check_mistral3(
            directory / "text_encoder", directory / "tokenizer", min_layers=TEXT_LAYERS[-1]
        ),
    )


FAMILY = make_flux2_family(
    name="flux2-dev",
    title="FLUX.2 dev",
    pipeline_classes=("Flux2Pipeline",),
    text_encoders=(
        TextEncoderPart(
            "text_encoder",
            "transformers",
            "Mistral3ForConditionalGeneration",
            # The folder holds a PixtralProcessor, whose images nobody shows it here: its tokenizer
            # is read, of whichever class its file names.
            tokenizer_class="AutoTokenizer",
        ),
    ),
    functions="dreambooth_ray.models.families.flux2_dev_functions:Flux2DevFunctions",
    check=_check_directory,
    architecture=lambda _: "flux2-dev",
    embeds_guidance=True,
)
