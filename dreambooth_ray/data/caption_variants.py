"""What photographs' captions are varied to: tags in another order, tags left out, words around.

Pure functions of the seed and of a caption's own text, so any number of workers, and a resumed run,
have the same. As many as are configured are made before the first step; which of them a step takes
is drawn as among any captions of a photograph (`training.dataset`).
"""

from collections.abc import Sequence

from dreambooth_ray.config.captions import CAPTION, CaptionsConfig
from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import SubjectConfig
from dreambooth_ray.data.caption_words import close_gaps, has_word
from dreambooth_ray.objective.address import seed_of

# Numbers of `seed_of` are below this.
_SEED_LIMIT = 2**63
# 40 photographs with 16 each; 5 GB of FLUX.1's embeddings.
_MANY_CAPTIONS = 640


def list_captions(config: Config, subject: SubjectConfig, own_caption: str) -> tuple[str, ...]:
    """The captions that a photograph may get, one at random a step.

    own_caption: what the photograph came with, filled in; "" where it gets the recipe's prompts
    """
    templates = [config.fill(t, subject) for t in config.captions.templates] or [CAPTION]
    captions: tuple[str, ...] = (own_caption,)
    if not own_caption:
        captions, templates = config.instance_prompts(subject), [CAPTION]
    if not config.captions.varies_tags:
        return tuple(_fill(t, caption) for caption in captions for t in templates)
    word = config.word(subject)
    variants = [
        # Templates take turns, so that each has its share.
        _fill(
            templates[index % len(templates)],
            vary_tags(config.captions, config.seed, caption, word, index),
        )
        for caption in captions
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
    address = seed, "caption variant", caption, index
    remaining = [
        number
        for number in range(captions.keep_tokens, len(tags))
        if has_word(tags[number], identifier)
        or seed_of(*address, "dropout", number) >= captions.tag_dropout * _SEED_LIMIT
    ]
    if captions.shuffle:
        remaining.sort(key=lambda number: seed_of(*address, "order", number))
    joint = f"{captions.separator} " if captions.separator in ",;" else f" {captions.separator} "
    return joint.join([*tags[: captions.keep_tokens], *(tags[number] for number in remaining)])


def find_doubt(config: Config, subject: SubjectConfig, own_captions: Sequence[str]) -> str | None:
    """What is doubtful of `captions` for a subject, in words; None for nothing.

    What changes nothing, and more variants than one would want to encode.

    own_captions: of each photograph, as of `list_captions`
    """
    if idle := _find_idle_setting(config, subject, own_captions):
        return idle
    captions = {text for own in own_captions for text in list_captions(config, subject, own)}
    if len(captions) <= _MANY_CAPTIONS or not config.captions.varies_tags:
        return None
    return (
        f"captions.variants={config.captions.variants} makes {len(captions)} different captions; "
        "each is read by the text encoders before the first step, and what they make of it is held "
        "in memory where they are frozen; lower it if that takes long, or more than there is"
    )


def _find_idle_setting(
    config: Config, subject: SubjectConfig, own_captions: Sequence[str]
) -> str | None:
    """What of `captions` changes nothing of a subject's, and why."""
    settings = config.captions
    if settings.templates and not any(own_captions):
        return (
            f"captions.templates={list(settings.templates)} are for photographs with captions of "
            "their own, and none has one"
        )
    prompts = config.instance_prompts(subject)
    captions = {text for own in own_captions for text in ([own] if own else prompts)}
    if not settings.varies_tags or any(_varies(config, subject, text) for text in captions):
        return None
    keys = ["captions.shuffle"] * settings.shuffle
    keys += ["captions.tag_dropout"] * (settings.tag_dropout > 0)
    return (
        f"{' and '.join(keys)}: no caption has a tag that could move or be left out behind the "
        f"first {settings.keep_tokens} (captions.keep_tokens); tags are what "
        f"captions.separator={settings.separator!r} parts"
    )


def _varies(config: Config, subject: SubjectConfig, caption: str) -> bool:
    """Whether a variant is another than the caption as it is."""
    settings, word = config.captions, config.word(subject)
    unvaried = settings.model_copy(update={"shuffle": False, "tag_dropout": 0.0})
    texts = [
        vary_tags(each, config.seed, caption, word, index)
        for each in (settings, unvaried)
        for index in range(settings.variants)
    ]
    return len(set(texts)) > 1


def _fill(template: str, caption: str) -> str:
    if template == CAPTION:
        return caption
    filled = template.replace(CAPTION, caption)
    return filled if caption else close_gaps(filled)
