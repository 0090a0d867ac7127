"""Masks of photographs as a segmentation network of transformers proposes them."""

import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dreambooth_ray.data.masks import MASK_SUFFIX, check_mask
from dreambooth_ray.errors import ConfigError, DataError, StorageError
from dreambooth_ray.models.components import quiet_libraries
from dreambooth_ray.models.model_location import fetch_part
from dreambooth_ray.models.network_loading import explained_loading, load_whole_network
from dreambooth_ray.models.weight_files import find_weights
from dreambooth_ray.storage.local_files import create_by_link

_KEY, _PART = "--segment", "segmentation_model"
_BACKGROUNDS = {"background", "bg"}
_MAX_NAMED = 8


class Segmenter:
    """Tells the pixels of one class from all others.

    Of a network with one or two classes, which tells a foreground from its background, that is the
    foreground.
    """

    def __init__(self, uri: str, class_noun: str) -> None:
        """uri: a directory as transformers' save_pretrained writes it, a model of the hub, or a URL

        raises: ConfigError for another kind of network, one that does not know the class noun, or
            weights that are not whole; and what `fetch_part` raises
        """
        quiet_libraries()
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation  # noqa: PLC0415

        folder = fetch_part(uri, _PART, _KEY)
        with explained_loading(folder):
            _check_kind(folder, uri)
            weights = find_weights(folder, _PART)
            self._network: Any = load_whole_network(
                AutoModelForSemanticSegmentation, folder, weights.variant
            ).eval()
            self._processor: Any = AutoImageProcessor.from_pretrained(folder)
        self._classes = _find_classes(self._network.config.id2label, class_noun, uri)

    @torch.no_grad()
    def segment(self, image: Image.Image) -> Image.Image:
        """ "L", of the image's size: white where the class is, black elsewhere."""
        # Pixels that are cut off would get no answer.
        options = {"do_center_crop": False} if hasattr(self._processor, "do_center_crop") else {}
        inputs = self._processor(images=[image.convert("RGB")], return_tensors="pt", **options)
        logits: Tensor = self._network(pixel_values=inputs["pixel_values"]).logits
        size = (image.height, image.width)
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)[0]
        if len(logits) == 1:
            is_inside = logits[0] > 0
        else:
            is_inside = torch.isin(logits.argmax(dim=0), torch.tensor(self._classes))
        return Image.fromarray((is_inside * 255).to(torch.uint8).numpy())


def _check_kind(folder: Path, uri: str) -> None:
    """raises: ConfigError for what is no network for semantic segmentation"""
    from transformers import (  # noqa: PLC0415
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        AutoConfig,
    )

    try:
        config = AutoConfig.from_pretrained(folder)
        is_known = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
        name = str(config.model_type)
    except (OSError, ValueError) as error:
        is_known, name = False, " ".join(str(error).split())[:120]
    if not is_known:
        raise ConfigError(
            f"{_KEY}={uri!r} is no network for semantic segmentation that transformers has "
            f"({name}); take one such as SegFormer, UPerNet, DPT or BEiT"
        )


def _find_classes(labels: Mapping[int, str], class_noun: str, uri: str) -> list[int]:
    """Which of a network's classes are the subject's; raises ConfigError where none is."""
    names = {index: _split_label(label) for index, label in labels.items()}
    noun = " ".join(class_noun.lower().split())
    matches = [index for index, words in names.items() if noun in words]
    if matches:
        return matches
    if len(names) <= 2:
        foregrounds = [index for index, words in names.items() if not words & _BACKGROUNDS]
        return foregrounds[-1:] or [max(names)]
    known = sorted(set().union(*names.values()))
    close = difflib.get_close_matches(noun, known, _MAX_NAMED, 0.4) or known[:_MAX_NAMED]
    asked = f"--class-noun={class_noun!r} is none of them" if noun else "it needs --class-noun"
    raise ConfigError(
        f"{_KEY}={uri!r} tells {len(names)} classes apart, and {asked}; take one of its own, such "
        f"as {', '.join(close)}"
    )


def _split_label(label: str) -> set[str]:
    """A label of several names, such as "dog, domestic dog"."""
    return {" ".join(name.lower().split()) for name in re.split("[,;/]", str(label))}


class MaskProposals:
    """Asked for the masks of photographs that have none; writes them beside these, if wished.

    outcomes: what came of it, in words, by the photograph's name
    """

    def __init__(self, segmenter: Segmenter, *, writes: bool) -> None:
        self._segmenter, self._writes = segmenter, writes
        self.outcomes: dict[str, str] = {}

    def propose(self, path: Path, image: Image.Image) -> Image.Image | None:
        """A mask of the image's size; None where there is no good one.

        raises: StorageError if it can't be written
        """
        mask = self._segmenter.segment(image)
        share = mask.histogram()[255] / (mask.width * mask.height)
        if not share:
            self.outcomes[path.name] = "nothing of the subject is seen there"
            return None
        try:
            check_mask(mask, "it")
        except DataError as error:
            self.outcomes[path.name] = f"not proposed: {error}"
            return None
        self.outcomes[path.name] = f"{share:.0%} of the frame"
        if self._writes:
            self.outcomes[path.name] += f", {_write(mask, path)}"
        return mask


def _write(mask: Image.Image, photograph: Path) -> str:
    """What came of it, in words; a mask that is there stays."""
    target = photograph.with_name(f"{photograph.stem}{MASK_SUFFIX}")
    png = io.BytesIO()
    mask.save(png, "PNG")
    try:
        is_written = create_by_link(target, png.getvalue())
    except OSError as error:
        raise StorageError(f"--write-masks: {target} can't be written: {error}") from error
    return f"written to {target.name}" if is_written else f"{target.name} is there and stays"
