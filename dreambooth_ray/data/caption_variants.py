"""What photographs' captions are varied to: tags in another order, tags left out, words around.

Pure functions of the seed and of a caption's own text, so any number of workers, and a resumed run,
have the same. As many as are configured are made before the first step; which of them a step takes
is drawn as among any captions of a photograph (`training.dataset`).
"""

from collections.abc import Sequence

from dreambooth_ray.config.captions import CAPTION, CaptionsConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_words import caption_has_word, close_gaps
from dreambooth_ray.objective.seed_derivation import derive_seed

# Numbers of `derive_seed` are below this.
_SEED_LIMIT = 2**63
# 40 photographs with 16 each; 5 GB of FLUX.1's embeddings.
_MANY_CAPTIONS = 640


def list_caption_variants(
    config: Config, subject: SubjectConfig, own_caption: str
) -> tuple[str, ...]:
    """The captions that a photograph may get, one at random a step.

    own_caption: what the photograph came with, filled in; "" where it gets the recipe's prompts
    """
    caption_templates = [config.fill(t, subject) for t in config.captions.templates] or [CAPTION]
    base_captions: tuple[str, ...] = (own_caption,)
    if not own_caption:
        base_captions, caption_templates = config.instance_prompts(subject), [CAPTION]
    if not config.captions.varies_tags:
        return tuple(
            _insert_caption_in_template(t, caption)
            for caption in base_captions
            for t in caption_templates
        )
    identifier_word = config.word(subject)
    variants = [
        # Templates take turns, so that each has its share.
        _insert_caption_in_template(
            caption_templates[index % len(caption_templates)],
            vary_tags(config.captions, config.seed, caption, identifier_word, index),
        )
        for caption in base_captions
        for index in range(config.captions.variants)
    ]
    # Where there is nothing to choose from, nothing is drawn.
    return tuple(variants) if len(set(variants)) > 1 else tuple(variants[:1])


def vary_tags(
    captions: CaptionsConfig, seed: int, caption: str, identifier: str, index: int
) -> str:
    """Variant `index` of a caption, from 0: its tags in another order, some of them left out.

    The first `keep_tokens` tags stay. Those with the identifier are never left out.
    """
    tags = [tag for part in caption.split(captions.separator) if (tag := part.strip())]
    seed_parts = seed, "caption variant", caption, index
    kept_tag_indices = [
        tag_index
        for tag_index in range(captions.keep_tokens, len(tags))
        if caption_has_word(tags[tag_index], identifier)
        or derive_seed(*seed_parts, "dropout", tag_index) >= captions.tag_dropout * _SEED_LIMIT
    ]
    if captions.shuffle:
        kept_tag_indices.sort(key=lambda tag_index: derive_seed(*seed_parts, "order", tag_index))
    tag_separator = (
        f"{captions.separator} " if captions.separator in ",;" else f" {captions.separator} "
    )
    return tag_separator.join(
        [*tags[: captions.keep_tokens], *(tags[tag_index] for tag_index in kept_tag_indices)]
    )


def find_variant_warning(
    config: Config, subject: SubjectConfig, own_captions: Sequence[str]
) -> str | None:
    """What is doubtful of `captions` for a subject, in words; None for nothing.

    What changes nothing, and more variants than one would want to encode.

    own_captions: of each photograph, as of `list_caption_variants`
    """
    if idle_setting := _find_idle_setting(config, subject, own_captions):
        return idle_setting
    distinct_captions = {
        text for own in own_captions for text in list_caption_variants(config, subject, own)
    }
    if len(distinct_captions) <= _MANY_CAPTIONS or not config.captions.varies_tags:
        return None
    return (
        f"captions.variants={config.captions.variants} makes {len(distinct_captions)} different "
        "captions; "
        "each is read by the text encoders before the first step, and what they make of it is held "
        "in memory where they are frozen; lower it if that takes long, or more than there is"
    )


def _find_idle_setting(
    config: Config, subject: SubjectConfig, own_captions: Sequence[str]
) -> str | None:
    """What of `captions` changes nothing of a subject's, and why."""
    variation_settings = config.captions
    if variation_settings.templates and not any(own_captions):
        return (
            f"captions.templates={list(variation_settings.templates)} are for photographs with "
            "captions of their own, and none has one"
        )
    instance_prompts = config.instance_prompts(subject)
    distinct_captions = {
        text for own in own_captions for text in ([own] if own else instance_prompts)
    }
    if not variation_settings.varies_tags or any(
        _can_caption_vary(config, subject, text) for text in distinct_captions
    ):
        return None
    idle_keys = ["captions.shuffle"] * variation_settings.shuffle
    idle_keys += ["captions.tag_dropout"] * (variation_settings.tag_dropout > 0)
    return (
        f"{' and '.join(idle_keys)}: no caption has a tag that could move or be left out behind "
        f"the first {variation_settings.keep_tokens} (captions.keep_tokens); tags are what "
        f"captions.separator={variation_settings.separator!r} parts"
    )


def _can_caption_vary(config: Config, subject: SubjectConfig, caption: str) -> bool:
    """Whether a variant is another than the caption as it is."""
    variation_settings, identifier_word = config.captions, config.word(subject)
    settings_without_variation = variation_settings.model_copy(
        update={"shuffle": False, "tag_dropout": 0.0}
    )
    variant_texts = [
        vary_tags(variant_settings, config.seed, caption, identifier_word, index)
        for variant_settings in (variation_settings, settings_without_variation)
        for index in range(variation_settings.variants)
    ]
    return len(set(variant_texts)) > 1


def _insert_caption_in_template(template: str, caption: str) -> str:
    if template == CAPTION:
        return caption
    filled_template = template.replace(CAPTION, caption)
    return filled_template if caption else close_gaps(filled_template)
