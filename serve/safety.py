"""What is refused, and why: prompts by a policy of phrases, images by a classifier.

Results are explained, and logged by hash alone, so that an appeal can be looked into
without keeping what people wrote.
"""

import hashlib
import logging
import re
import unicodedata
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreambooth_ray.config.serving import SafetyConfig
from dreambooth_ray.config.yaml_text import parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError
from serve.image_classifiers import (
    ImageClassifier,
    PromptClassifier,
    load_image_classifier,
    load_prompt_classifier,
)

_LOG = logging.getLogger("dreambooth.serve")
# Letters that are put in the place of others to slip a word past a list.
_LOOKALIKES = str.maketrans(
    "013457@$!\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u0501\u03bf", "oleastasiaeopcxyido"
)


@dataclass(frozen=True)
class SafetyResult:
    """What a check found.

    score: 0 to 1; spans: (start, end, phrase) of what raised it
    fingerprint: SHA-256 of what was refused, by which an appeal finds the log's line
    """

    category: str
    score: float
    spans: tuple[tuple[int, int, str], ...] = ()
    refused: bool = False
    fingerprint: str = ""


CLEAN = SafetyResult("none", 0.0)


class PolicyCategory(BaseModel):
    """One kind of content in a policy file.

    phrases:  regular expressions over whole words, case and accents left out
    combined: two lists, of which one of each must occur
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float = Field(1.0, ge=0, le=1)
    phrases: tuple[str, ...] = ()
    combined: tuple[tuple[str, ...], ...] = ()


class ContentPolicy(BaseModel):
    """A policy file: refused are categories whose score reaches `threshold`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(0.5, ge=0, le=1)
    categories: dict[str, PolicyCategory]


class Safety:
    """Both checks, by one configuration."""

    def __init__(
        self,
        config: SafetyConfig,
        image_classifier: ImageClassifier | None = None,
        prompt_classifier: PromptClassifier | None = None,
    ) -> None:
        """image_classifier, prompt_classifier: of your own instead of the configuration's.

        raises: ConfigError if the policy file or a classifier can't be used
        """
        self._policy = read_policy(config.policy) if config.prompts else None
        self._prompt_classifier = prompt_classifier or load_prompt_classifier(config)
        self._image_classifier = image_classifier or load_image_classifier(config)

    def check_prompt(self, text: str) -> SafetyResult:
        """The worst that the policy finds in a text, with the phrases and their offsets."""
        safety_results = [CLEAN]
        if self._policy is not None:
            safety_results += _match_policy_phrases(text, self._policy)
        if self._prompt_classifier is not None:
            safety_results += _apply_prompt_classifier(text, self._prompt_classifier)
        worst_result = max(safety_results, key=lambda v: (v.refused, v.score))
        return (
            _log_refusal("prompt", worst_result, text.encode())
            if worst_result.refused
            else worst_result
        )

    def check_image(self, image: Image.Image) -> SafetyResult:
        """What the classifier says of an image."""
        if self._image_classifier is None:
            return CLEAN
        unsafety_score = self._image_classifier.score(image)
        is_image_refused = unsafety_score >= self._image_classifier.threshold
        safety_result = SafetyResult(
            self._image_classifier.category, round(unsafety_score, 4), refused=is_image_refused
        )
        return (
            _log_refusal("image", safety_result, image.tobytes())
            if is_image_refused
            else safety_result
        )


def read_policy(path: str | None) -> ContentPolicy:
    """A policy file, or the one that ships; raises ConfigError naming what is wrong with it."""
    shipped_policy_file = files("serve") / "policy.yaml"
    try:
        policy_text = read_text_file(Path(path)) if path else shipped_policy_file.read_text("utf-8")
        policy = ContentPolicy.model_validate(
            parse_yaml(policy_text, f"safety.policy={path}", ContentPolicy)
        )
        for category in policy.categories.values():
            for phrase in (*category.phrases, *(p for part in category.combined for p in part)):
                re.compile(phrase)
    except (OSError, ValidationError, re.error) as error:
        raise ConfigError(f"safety.policy={path!r} can't be used: {error}") from error
    return policy


def _match_policy_phrases(text: str, policy: ContentPolicy) -> list[SafetyResult]:
    normalized_text, character_offsets = _normalize_text(text)
    safety_results = [
        _match_category(text, normalized_text, character_offsets, name, category, policy.threshold)
        for name, category in policy.categories.items()
    ]
    return [result for result in safety_results if result is not None]


def _apply_prompt_classifier(text: str, classifier: PromptClassifier) -> list[SafetyResult]:
    return [
        SafetyResult(
            category, round(unsafety_score, 4), refused=unsafety_score >= classifier.threshold
        )
        for category, unsafety_score in classifier.scores(text).items()
    ]


def _normalize_text(text: str) -> tuple[str, list[int]]:
    """Small letters without accents, digits for letters or what can't be seen.

    returns: the text and, for each of its characters and its end, the offset where it came from
    """
    normalized_characters, character_offsets = [], []
    for character_offset, character in enumerate(text):
        # Joiners, soft hyphens and combining accents are put into words to break them up.
        if unicodedata.category(character) in ("Cf", "Mn"):
            continue
        base_character = unicodedata.normalize("NFKD", character)[:1].lower()
        normalized_characters.append(base_character if len(base_character) == 1 else " ")
        character_offsets.append(character_offset)
    return "".join(normalized_characters).translate(_LOOKALIKES), [*character_offsets, len(text)]


def _match_category(
    text: str,
    normalized_text: str,
    character_offsets: list[int],
    name: str,
    category: PolicyCategory,
    threshold: float,
) -> SafetyResult | None:
    def find_spans(phrases: tuple[str, ...]) -> list[tuple[int, int, str]]:
        phrase_matches = (
            phrase_match
            for phrase in phrases
            for phrase_match in re.finditer(rf"(?<!\w)(?:{phrase})(?!\w)", normalized_text)
            if phrase_match.end() > phrase_match.start()
        )
        match_ranges = (
            (character_offsets[m.start()], character_offsets[m.end() - 1] + 1)
            for m in phrase_matches
        )
        return [(start, end, text[start:end]) for start, end in match_ranges]

    spans = find_spans(category.phrases)
    combined_spans = [find_spans(phrases) for phrases in category.combined]
    if combined_spans and all(combined_spans):
        spans += [span for part in combined_spans for span in part]
    if not spans:
        return None
    return SafetyResult(name, category.score, tuple(sorted(spans)), category.score >= threshold)


def _log_refusal(kind: str, result: SafetyResult, content: bytes) -> SafetyResult:
    """The result with its fingerprint, written to the log as well."""
    logged_safety_result = replace(result, fingerprint=hashlib.sha256(content).hexdigest())
    log_fields = {f: getattr(logged_safety_result, f) for f in ("category", "score", "fingerprint")}
    _LOG.warning(f"safety.{kind}", extra=log_fields)
    return logged_safety_result
