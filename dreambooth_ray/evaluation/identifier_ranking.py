"""Words that mean nothing to a model: free identifiers for a subject."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.data.subject import ORDINARY_WORDS
from dreambooth_ray.evaluation.encoders import ImageEncoder
from dreambooth_ray.models.components import Components
from dreambooth_ray.sampling.adapted_network import AdaptedNetwork
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.prompt_encoder import PromptEncoder
from dreambooth_ray.sampling.request import Request

MAX_TOKENS = 3
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_WORD_LENGTHS = (3, 4, 5)
# A vocabulary is ordered by how early a piece was merged: the last third is rare.
_RARE_SHARE = 2 / 3


@dataclass(frozen=True)
class IdentifierCandidate:
    """A word and how much it means to the model; smaller is better.

    num_tokens:    pieces that the model's tokenizer cuts it into
    displacement:  1 - cosine of probe images to those of the bare class, seed by seed
    narrowing:     how much less the probe images differ among each other than the
                   bare class's do; a word with a meaning makes them alike
    """

    word: str
    num_tokens: int
    displacement: float
    narrowing: float

    @property
    def meaning_score(self) -> float:
        """What the ranking goes by: both, a widening not counted."""
        return self.displacement + max(0.0, self.narrowing)


def list_candidate_words(tokenizer: CLIPTokenizer, class_noun: str) -> list[str]:
    """Rare words of a vocabulary, 3 to 5 letters and 1 to 3 tokens, in a fixed order.

    Whole words among the last third of the vocabulary, the rarest first; then strings of
    three consonants, which every vocabulary can spell and hardly any text holds.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    first_rare_id = int(len(vocabulary) * _RARE_SHARE)
    rare_whole_words = sorted(
        ((index, piece.removesuffix("</w>")) for piece, index in vocabulary.items()
         if index >= first_rare_id and piece.endswith("</w>")),
        reverse=True,
    )  # fmt: skip
    rare_words = [
        word for _, word in rare_whole_words if word.isascii() and word.isalpha() and word.islower()
    ]
    consonant_strings = ["".join(letters) for letters in itertools.product(_CONSONANTS, repeat=3)]
    # Neighbours in the alphabet are spelt alike: step through with a stride that shares no factor.
    strided_strings = [
        consonant_strings[(k * 1777) % len(consonant_strings)]
        for k in range(len(consonant_strings))
    ]
    excluded_words = ORDINARY_WORDS | set(class_noun.lower().split())
    short_words = [
        w for w in dict.fromkeys([*rare_words, *strided_strings]) if len(w) in _WORD_LENGTHS
    ]
    return [
        w
        for w in short_words
        if w not in excluded_words and 1 <= count_word_tokens(tokenizer, w) <= MAX_TOKENS
    ]


def count_word_tokens(tokenizer: CLIPTokenizer, word: str) -> int:
    """Pieces of a word, without start and end."""
    return len(tokenizer(word, add_special_tokens=False)["input_ids"])


def shortlist_words(
    words: list[str], encode: Callable[[str], Tensor], class_noun: str, count: int
) -> list[str]:
    """The `count` words whose sentence the text encoder moves least from the bare class.

    encode: a sentence to its (1, T, D) states; cheap, where images are not
    """
    class_hidden_state = encode(f"a {class_noun}")[0, -1]
    scored_words = [
        (
            float(
                1
                - F.cosine_similarity(
                    encode(f"a {w} {class_noun}")[0, -1], class_hidden_state, dim=0
                )
            ),
            w,
        )
        for w in words
    ]
    return [word for _, word in sorted(scored_words)[:count]]


def rank_words(
    engine: Engine,
    encoder: ImageEncoder,
    words: list[str],
    class_noun: str,
    *,
    tokenizer: CLIPTokenizer,
    num_images: int,
    seed: int,
    params: SamplingParams,
    on_progress: Callable[[int, int], None],
) -> list[IdentifierCandidate]:
    """Generate `num_images` of each word before the class noun; the least meaning first."""
    probe_prompts = [f"a {class_noun}", *(f"a {w} {class_noun}" for w in words)]
    sampling_requests = [
        Request(prompt, seed + k, params=params)
        for prompt in probe_prompts
        for k in range(num_images)
    ]
    images: list[Image.Image] = [d.image for d in engine.sample(sampling_requests, on_progress)]
    image_vectors = encoder.embed_images(images).reshape(len(probe_prompts), num_images, -1)
    word_candidates = [
        score_identifier_word(word, count_word_tokens(tokenizer, word), probe, image_vectors[0])
        for word, probe in zip(words, image_vectors[1:], strict=True)
    ]
    return sorted(word_candidates, key=lambda c: (c.meaning_score, c.word))


def score_identifier_word(
    word: str, tokens: int, probe: Tensor, plain: Tensor
) -> IdentifierCandidate:
    """probe, plain: (K, D) unit vectors of images with and without the word, seed by seed."""
    embedding_displacement = float(1 - (probe * plain).sum(dim=1).mean())
    return IdentifierCandidate(
        word, tokens, embedding_displacement, _vector_variance(plain) - _vector_variance(probe)
    )


def _vector_variance(vectors: Tensor) -> float:
    """Mean variance: 1 - squared length of the mean of unit vectors."""
    return float(1 - vectors.mean(dim=0).square().sum())


def build_sentence_encoder(parts: Components) -> Callable[[str], Tensor]:
    """A model's own text encoder as a function of sentences, to (1, T, D) states."""
    adapted_encoders = {
        name: AdaptedNetwork(encoder) for name, encoder in parts.text_encoders.items()
    }
    prompt_encoder = PromptEncoder(parts, adapted_encoders)
    return lambda sentence: prompt_encoder.encode(sentence)["hidden"]
