from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dreambooth_ray.config.sampling_params import SamplingParams
from dreambooth_ray.evaluation import identifier_ranking
from dreambooth_ray.evaluation.encoders import load_image_encoder
from dreambooth_ray.evaluation.identifier_ranking import count_word_tokens, score_identifier_word
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.sampling.engine import Engine

X, Y, Z = torch.eye(3)


@pytest.fixture(scope="module")
def parts(toy_model: Path) -> Components:
    return load_components(toy_model)


def test_candidates_are_rare_words_of_the_vocabulary(parts: Components) -> None:
    words = identifier_ranking.list_candidate_words(parts.tokenizer, "robot")
    assert words == identifier_ranking.list_candidate_words(parts.tokenizer, "robot")
    assert len(words) > 1000
    assert {"robot", "red", "dog", "car"}.isdisjoint(words)
    assert all(3 <= len(w) <= 5 and w.isalpha() for w in words)
    assert all(1 <= count_word_tokens(parts.tokenizer, w) <= 3 for w in words[:200])
    starts = {w[0] for w in words[:40]}
    assert len(starts) > 5


def test_the_shortlist_moves_the_sentence_least(parts: Components) -> None:
    encode = identifier_ranking.build_sentence_encoder(parts)
    assert identifier_ranking.shortlist_words(["red", "sks", "blue"], encode, "robot", 1) == ["sks"]


def test_a_word_without_meaning_changes_nothing() -> None:
    plain = torch.stack([X, Y, Z])
    nothing = score_identifier_word("sks", 3, plain, plain)
    assert nothing.meaning_score == pytest.approx(0.0, abs=1e-6)
    strong = score_identifier_word("red", 1, torch.stack([X, X, X]), plain)
    assert strong.displacement == pytest.approx(2 / 3)
    assert strong.narrowing == pytest.approx(2 / 3)
    wider = score_identifier_word("odd", 1, plain, F.normalize(plain + X, dim=1))
    assert wider.narrowing < 0
    assert wider.meaning_score == wider.displacement


def test_words_are_ranked_by_the_images_of_them(parts: Components) -> None:
    candidates = identifier_ranking.rank_words(
        Engine(parts), load_image_encoder("toyworld:attributes"), ["red", "sks"], "robot",
        tokenizer=parts.tokenizer, num_images=3, seed=0,
        params=SamplingParams(num_inference_steps=4), on_progress=lambda done, total: None,
    )  # fmt: skip
    assert [c.word for c in candidates] == ["sks", "red"]
    assert candidates[0].num_tokens == 3
