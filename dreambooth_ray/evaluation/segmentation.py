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

from dreambooth_ray.data.masks import MASK_SUFFIX, refuse_empty_or_inverted_mask
from dreambooth_ray.errors import ConfigError, DataError, StorageError
from dreambooth_ray.models.components import quiet_libraries
from dreambooth_ray.models.model_location import fetch_part
from dreambooth_ray.models.network_loading import explained_loading, load_network_strictly
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

        model_folder = fetch_part(uri, _PART, _KEY)
        with explained_loading(model_folder):
            _check_segmentation_model(model_folder, uri)
            weight_files = find_weights(model_folder, _PART)
            self._network: Any = load_network_strictly(
                AutoModelForSemanticSegmentation, model_folder, weight_files.variant
            ).eval()
            self._processor: Any = AutoImageProcessor.from_pretrained(model_folder)
        self._classes = _find_subject_classes(self._network.config.id2label, class_noun, uri)

    @torch.no_grad()
    def segment(self, image: Image.Image) -> Image.Image:
        """ "L", of the image's size: white where the class is, black elsewhere."""
        # Pixels that are cut off would get no answer.
        processor_options = (
            {"do_center_crop": False} if hasattr(self._processor, "do_center_crop") else {}
        )
        processor_inputs = self._processor(
            images=[image.convert("RGB")], return_tensors="pt", **processor_options
        )
        logits: Tensor = self._network(pixel_values=processor_inputs["pixel_values"]).logits
        size = (image.height, image.width)
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)[0]
        if len(logits) == 1:
            is_subject_pixel = logits[0] > 0
        else:
            is_subject_pixel = torch.isin(logits.argmax(dim=0), torch.tensor(self._classes))
        return Image.fromarray((is_subject_pixel * 255).to(torch.uint8).numpy())


def _check_segmentation_model(folder: Path, uri: str) -> None:
    """raises: ConfigError for what is no network for semantic segmentation"""
    from transformers import (  # noqa: PLC0415
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        AutoConfig,
    )

    try:
        config = AutoConfig.from_pretrained(folder)
        is_supported = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
        model_type = str(config.model_type)
    except (OSError, ValueError) as error:
        is_supported, model_type = False, " ".join(str(error).split())[:120]
    if not is_supported:
        raise ConfigError(
            f"{_KEY}={uri!r} is no network for semantic segmentation that transformers has "
            f"({model_type}); take one such as SegFormer, UPerNet, DPT or BEiT"
        )


def _find_subject_classes(labels: Mapping[int, str], class_noun: str, uri: str) -> list[int]:
    """Which of a network's classes are the subject's; raises ConfigError where none is."""
    names_by_class = {index: _split_class_names(label) for index, label in labels.items()}
    noun = " ".join(class_noun.lower().split())
    matching_classes = [
        index for index, class_names in names_by_class.items() if noun in class_names
    ]
    if matching_classes:
        return matching_classes
    if len(names_by_class) <= 2:
        foreground_classes = [
            index for index, class_names in names_by_class.items() if not class_names & _BACKGROUNDS
        ]
        return foreground_classes[-1:] or [max(names_by_class)]
    known_class_names = sorted(set().union(*names_by_class.values()))
    close_names = (
        difflib.get_close_matches(noun, known_class_names, _MAX_NAMED, 0.4)
        or known_class_names[:_MAX_NAMED]
    )
    noun_problem_text = (
        f"--class-noun={class_noun!r} is none of them" if noun else "it needs --class-noun"
    )
    raise ConfigError(
        f"{_KEY}={uri!r} tells {len(names_by_class)} classes apart, and {noun_problem_text}; take "
        f"one of its own, such as {', '.join(close_names)}"
    )


def _split_class_names(label: str) -> set[str]:
    """A label of several names, such as "dog, domestic dog"."""
    return {" ".join(name.lower().split()) for name in re.split("[,;/]", str(label))}


class MaskProposer:
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
        mask_share = mask.histogram()[255] / (mask.width * mask.height)
        if not mask_share:
            self.outcomes[path.name] = "nothing of the subject is seen there"
            return None
        try:
            refuse_empty_or_inverted_mask(mask, "it")
        except DataError as error:
            self.outcomes[path.name] = f"not proposed: {error}"
            return None
        self.outcomes[path.name] = f"{mask_share:.0%} of the frame"
        if self._writes:
            self.outcomes[path.name] += f", {_write_mask(mask, path)}"
        return mask


def _write_mask(mask: Image.Image, photograph: Path) -> str:
    """What came of it, in words; a mask that is there stays."""
    mask_path = photograph.with_name(f"{photograph.stem}{MASK_SUFFIX}")
    png_buffer = io.BytesIO()
    mask.save(png_buffer, "PNG")
    try:
        is_written = create_by_link(mask_path, png_buffer.getvalue())
    except OSError as error:
        raise StorageError(f"--write-masks: {mask_path} can't be written: {error}") from error
    return f"written to {mask_path.name}" if is_written else f"{mask_path.name} is there and stays"
