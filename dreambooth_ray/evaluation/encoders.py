"""Networks that turn images, and some also sentences, into unit vectors."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import quiet_libraries
from dreambooth_ray.toyworld.attributes import BACKGROUNDS, CLASSES, COLOUR_NAMES, PATTERNS
from dreambooth_ray.toyworld.evaluator import NAMES, load_evaluator, predict_logits

TOY_IDENTITY, TOY_ATTRIBUTES, PIXELS = "toyworld:identity", "toyworld:attributes", "pixels"
_BATCH = 16


class ImageEncoder(Protocol):
    """Images to unit vectors. uri names the weights, so that a result can be repeated."""

    uri: str

    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU, unit."""


class ImageTextEncoder(ImageEncoder, Protocol):
    """Images and sentences in one space."""

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(B, D) float32 on the CPU, unit."""


def load_image_encoder(uri: str, device: str = "cpu", key: str = "encoder") -> ImageEncoder:
    """An encoder by URI.

    uri: "toyworld:identity", "toyworld:attributes", "pixels", or a directory or hub name
        that transformers reads: a CLIP, or a vision network whose first output token is
        the image's (ViT, DINO, DINOv2)
    raises: ConfigError naming `key`
    """
    if uri == PIXELS:
        return PixelEncoder()
    if uri == TOY_IDENTITY:
        return ToyIdentityEncoder()
    if uri == TOY_ATTRIBUTES:
        return ToyAttributeEncoder()
    quiet_libraries()
    from transformers import AutoConfig  # noqa: PLC0415  seconds to import

    try:
        model_type = AutoConfig.from_pretrained(uri).model_type
        return ClipEncoder(uri, device) if model_type == "clip" else ClassTokenEncoder(uri, device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}={uri!r} can't be loaded ({reason}); give a directory that transformers' "
            "save_pretrained wrote, or a name that this machine can download"
        ) from error


def load_image_text_encoder(
    uri: str, device: str = "cpu", key: str = "encoder"
) -> ImageTextEncoder:
    """Like `load_image_encoder`; raises ConfigError too for a network that reads no sentences."""
    encoder = as_image_text_encoder(load_image_encoder(uri, device, key))
    if encoder is None:
        raise ConfigError(f"{key}={uri!r} reads no sentences; give a CLIP, or {TOY_ATTRIBUTES!r}")
    return encoder


def as_image_text_encoder(encoder: Any) -> ImageTextEncoder | None:
    """The encoder itself if it reads sentences too."""
    return encoder if hasattr(encoder, "embed_texts") else None


class _PretrainedEncoder(ABC):
    """What both kinds of networks from transformers share."""

    def __init__(self, uri: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel  # noqa: PLC0415

        self.uri, self._device = uri, device
        self._model = AutoModel.from_pretrained(uri, dtype=torch.float32).to(device).eval()
        self._processor = AutoImageProcessor.from_pretrained(uri)

    @torch.no_grad()
    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU, unit."""
        feature_batches = []
        for k in range(0, len(images), _BATCH):
            image_batch = [p.convert("RGB") for p in images[k : k + _BATCH]]
            pixels = self._processor(images=image_batch, return_tensors="pt")["pixel_values"]
            feature_batches.append(self._compute_features(pixels.to(self._device)).float().cpu())
        return F.normalize(torch.cat(feature_batches), dim=1)

    @abstractmethod
    def _compute_features(self, pixels: Tensor) -> Tensor:
        """(B, D) features of (B, 3, H, W) pixels."""


class ClassTokenEncoder(_PretrainedEncoder):
    """A vision transformer's first output token after its last norm: DINO's [CLS]."""

    def _compute_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._model(pixels).last_hidden_state[:, 0]
        return features


class ClipEncoder(_PretrainedEncoder):
    """CLIP's projected image and sentence vectors."""

    def __init__(self, uri: str, device: str) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415

        super().__init__(uri, device)
        self._tokenizer = AutoTokenizer.from_pretrained(uri)
        self._length = int(self._model.config.text_config.max_position_embeddings)

    def _compute_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._model.get_image_features(pixel_values=pixels).pooler_output
        return features

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """(B, D) float32 on the CPU, unit; longer texts are cut at the model's length."""
        token_batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self._device)
        text_features = self._model.get_text_features(
            input_ids=token_batch["input_ids"], attention_mask=token_batch["attention_mask"]
        )
        return F.normalize(text_features.pooler_output.float().cpu(), dim=1)


class PixelEncoder:
    """A thumbnail as a vector, its mean removed: the cosine is the images' correlation.

    Sees what is where and nothing of what it means, so it is for copies.
    """

    uri = PIXELS
    SIDE_PX = 24

    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, 3 * 24 * 24), unit; an even image has a constant vector."""
        size = (self.SIDE_PX, self.SIDE_PX)
        image_vectors = []
        for image in images:
            thumbnail = image.convert("RGB").resize(size, Image.Resampling.BOX)
            pixels = np.asarray(thumbnail, dtype=np.float32)
            centred_pixels = pixels - pixels.mean(axis=(0, 1))
            image_vectors.append(
                centred_pixels.ravel()
                if np.abs(centred_pixels).max() > 0.5
                else np.ones(pixels.size)
            )
        return F.normalize(torch.from_numpy(np.stack(image_vectors)).float(), dim=1)


class ToyIdentityEncoder:
    """The toy world's evaluator: which individual an image shows."""

    uri = TOY_IDENTITY

    def __init__(self) -> None:
        self._network = load_evaluator()

    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, 64), unit."""
        return predict_logits(self._network, images)[1]


class ToyAttributeEncoder:
    """The toy world's evaluator: what an image shows, against what a sentence names.

    An image's vector holds the probabilities of all attributes, a sentence's a one for each
    attribute it names, among those of the same attribute.
    """

    uri = TOY_ATTRIBUTES

    def __init__(self) -> None:
        self._network = load_evaluator()

    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, 36), unit."""
        logits, _ = predict_logits(self._network, images)
        return F.normalize(torch.cat([part.softmax(dim=1) for part in logits], dim=1), dim=1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(B, 36), unit; raises ConfigError for a sentence that names nothing of the world."""
        text_vectors = []
        for text in texts:
            named_attributes = parse_attributes(text)
            if not named_attributes:
                raise ConfigError(f"prompt {text!r} names nothing that the toy world knows")
            text_vectors.append(
                [
                    float(named_attributes.get(h) == n)
                    for h, attribute_values in NAMES.items()
                    for n in attribute_values
                ]
            )
        return F.normalize(torch.tensor(text_vectors), dim=1)


def parse_attributes(text: str) -> dict[str, str]:
    """The attributes that a toy-world sentence names: {"class": "robot", "background": "snow"}."""
    padded_text = f" {' '.join(text.lower().split())} "
    named_attributes: dict[str, str] = {}
    for background, background_phrase in BACKGROUNDS.items():
        if f" {background_phrase} " in padded_text:
            named_attributes["background"] = background
            # "on a plain background" is not a plain pattern.
            padded_text = padded_text.replace(f" {background_phrase} ", " ")
    for attribute_name, attribute_values in (
        ("class", CLASSES),
        ("colour", COLOUR_NAMES),
        ("pattern", PATTERNS),
    ):
        for attribute_value in attribute_values:
            if f" {attribute_value} " in padded_text:
                named_attributes[attribute_name] = attribute_value
    if " hat " in padded_text:
        named_attributes["hat"] = "hat"
    return named_attributes
