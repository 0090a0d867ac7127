"""`dreambooth identifier`: rare words that a model makes nothing of."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_ray.cli.sampling_options import sampling_options
from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.evaluation.identifier_ranking import IdentifierCandidate

# ruff: noqa: PLC0415  imports inside verbs keep --help quick


@sampling_options(num_inference_steps=20)
def identifier(
    model: Annotated[str, typer.Argument(help="a model, as model.uri")],
    class_noun: Annotated[str, typer.Option(help="what the subject is: dog, shoe")],
    word: Annotated[list[str] | None, typer.Option(help="also rank this one; repeatable")] = None,
    count: Annotated[int, typer.Option(min=1, help="words to draw images for")] = 8,
    pool: Annotated[int, typer.Option(min=1, help="rare words to choose those from")] = 400,
    num_images: Annotated[int, typer.Option(min=2, help="of each word")] = 8,
    encoder: Annotated[str, typer.Option(help="network that compares the images")] = (
        "openai/clip-vit-base-patch32"
    ),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="also write the ranking as JSON here")] = None,
    *,
    params: SamplingParams,
) -> None:
    """Rank rare words by how little the model makes of them; the best comes first."""
    from dreambooth_ray.bundles.new_path import check_file_is_writable
    from dreambooth_ray.models.model_directory import model_directory

    if not class_noun.strip():
        raise ConfigError("--class-noun is empty; say what the subject is, such as dog or shoe")
    _check_clip_text_encoder(model)
    if out:
        check_file_is_writable(out)
    from dreambooth_ray.display import ProgressStage
    from dreambooth_ray.evaluation import identifier_ranking as finder
    from dreambooth_ray.evaluation.encoders import load_image_encoder
    from dreambooth_ray.models.components import load_components
    from dreambooth_ray.sampling.engine import Engine

    model_components = load_components(model_directory(model, key="MODEL"))
    image_encoder = load_image_encoder(encoder, key="--encoder")
    rare_words = finder.list_candidate_words(model_components.tokenizer, class_noun)[:pool]
    shortlisted_words = finder.shortlist_words(
        rare_words, finder.build_sentence_encoder(model_components), class_noun, count
    )
    ranked_identifiers = finder.rank_words(
        Engine(model_components),
        image_encoder,
        list(dict.fromkeys([*shortlisted_words, *(word or [])])),
        class_noun,
        tokenizer=model_components.tokenizer,
        num_images=num_images,
        seed=seed,
        params=params,
        on_progress=ProgressStage("probe images"),
    )
    _print_ranking(ranked_identifiers)
    if out:
        image_params = {"num_pictures": num_images, **params.model_dump(), "seed": seed}
        rank_inputs = {"model": model, "class_noun": class_noun, "encoder": encoder, **image_params}
        _write_ranking(ranked_identifiers, rank_inputs, out)


def _check_clip_text_encoder(model: str) -> None:
    from dreambooth_ray.models.family import find_family
    from dreambooth_ray.models.model_directory import base_directory, model_outline

    model_family = find_family(base_directory(model_outline(model, "MODEL")))
    if model_family.text_encoders[0].tokenizer_class != "CLIPTokenizer":
        raise ConfigError(
            f"MODEL={model!r} is a {model_family.title}: words are ranked by CLIP's text encoder, "
            "which it has not; take a rare word such as 'sks'"
        )


def _print_ranking(ranked_identifiers: "list[IdentifierCandidate]") -> None:
    for identifier_candidate in ranked_identifiers:
        image_displacement, diversity_loss = (
            identifier_candidate.displacement,
            identifier_candidate.narrowing,
        )
        scores_text = f"displacement {image_displacement:.3f}, narrowing {diversity_loss:+.3f}"
        print(
            f"{identifier_candidate.word}  meaning {identifier_candidate.meaning_score:.3f} "
            f"({scores_text}, {identifier_candidate.num_tokens} tokens)"
        )


def _write_ranking(
    ranked_identifiers: "list[IdentifierCandidate]", rank_inputs: dict[str, object], out: Path
) -> None:
    from dreambooth_ray.bundles.new_path import explained_writing

    candidate_records = [
        asdict(candidate) | {"meaning": candidate.meaning_score} for candidate in ranked_identifiers
    ]
    with explained_writing(out):
        out.write_text(
            json.dumps({"conditions": rank_inputs, "words": candidate_records}, indent=1) + "\n"
        )
