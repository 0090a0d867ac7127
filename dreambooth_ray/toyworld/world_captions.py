"""Sentences about the toy world, and the tokenizer that reads them."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Lowercase, Sequence, Strip
from transformers import CLIPTokenizer

from dreambooth_ray.toyworld.attributes import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    CLASSES,
    COLOUR_NAMES,
    HAT_PHRASE,
    PATTERNS,
    RARE_WORDS,
)
from dreambooth_ray.toyworld.world import SceneLayout, Subject

WINDOW = 32  # tokens the text encoder reads, start and end marks included


def random_caption(subject: Subject, scene: SceneLayout, seed: int, index: int) -> str:
    """A caption with random omissions and, at times, a rare word before the noun.

    A pure function of its arguments. The noun is always named; a hat, where there is
    one, is left out in one case of ten only, so that its absence means something.
    """
    rng = np.random.default_rng([seed, 3, index])
    caption_words = ["a photo of a"] if rng.uniform() < 0.3 else ["a"]
    has_rare_word = bool(rng.uniform() < 0.2)
    if has_rare_word:
        caption_words.append(RARE_WORDS[rng.integers(len(RARE_WORDS))])
    if rng.uniform() < 0.75:
        caption_words.append(subject.colour)
    if rng.uniform() < (0.75 if subject.pattern != "plain" else 0.5):
        caption_words.append(subject.pattern)
    caption_words.append(subject.class_noun)
    if scene.hat and rng.uniform() < 0.9:
        caption_words.append(HAT_PHRASE)
    if rng.uniform() < 0.85:
        caption_words.append(BACKGROUNDS[scene.background])
    return " ".join(caption_words)


def write_tokenizer(directory: Path) -> None:
    """Make a byte-level BPE CLIP tokenizer whose merges cover the toy world's words.

    Words it never met, such as rare identifiers, fall into bytes: nothing is unknown.
    """
    directory.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = Sequence([Strip(), Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe_trainer = trainers.BpeTrainer(
        vocab_size=2048,
        initial_alphabet=byte_symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary_words(), bpe_trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    token_strings = [
        *byte_symbols,
        *(c + "</w>" for c in byte_symbols),
        *("".join(pair) for pair in merges),
    ]
    vocabulary_tokens = [*dict.fromkeys(token_strings), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(vocabulary_tokens)})
    )
    merge_lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(merge_lines) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(directory / "vocab.json"),
        merges=str(directory / "merges.txt"),
        model_max_length=WINDOW,
    )
    tokenizer.save_pretrained(directory)


def vocabulary_words() -> list[str]:
    """Every word that captions are made of, rare words aside, in a fixed order; some repeat."""
    # The flow model's token ids follow from these words. The CLIP tokenizer that ships was made
    # with "picture" in the place of "image", and is read from its own files.
    common_words = "a an the photo image of with and in on at"
    phrases = [common_words, HAT_PHRASE, *CLASSES, *COLOUR_NAMES, *PATTERNS, *BACKGROUNDS.values()]
    return [w for phrase in phrases + list(BACKGROUND_NAMES) for w in phrase.split()]
