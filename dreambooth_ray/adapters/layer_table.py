"""The layers of a model that an adapter can change, by every name that files have for them.

Names with dots and with underscores are taken for the same. Nothing heavy is imported: shapes are
those of the stored weights' headers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth_ray.models.family import ModelFamily, TextEncoderPart, find_family
from dreambooth_ray.models.kohya_names import AdapterFileLayer
from dreambooth_ray.models.weight_files import find_weights

_KOHYA_PREFIX = "lora_unet_"
# Before the names of layers, a denoiser's in the first place; several may follow each other.
_PREFIXES = (
    "lora_unet_", "lora_transformer_", "lycoris_", "base_model.model.", "unet.", "transformer.",
    "diffusion_model.", "model.diffusion_model.", "lora_unet_diffusion_model_",
)  # fmt: skip
# ComfyUI's and OneTrainer's names of text encoders, by class and which of that class it is.
_TEXT_NAMES = {
    ("CLIPTextModel", 0): ("text_encoders.clip_l.transformer.", "clip_l."),
    ("CLIPTextModelWithProjection", 0): ("text_encoders.clip_g.transformer.", "clip_g."),
    ("T5EncoderModel", 0): ("text_encoders.t5xxl.transformer.", "t5xxl.", "lora_te3_", "lora_te2_"),
}
# Levels of transformers' modules that were dropped, or that wrap the layers.
_TEXT_LEVELS = re.compile(r"^((text_model|model|language_model)[._])+")
_LAYER_DIMS = (2, 4)


@dataclass(frozen=True)
class LayerPlace:
    """A layer of ours that a file's layer is, or has as rows of its output.

    part: the network's folder; layer: as `strip_text_model_levels` has it; shape: of its weight
    shares: sizes of all the parts that the file's layer has, as AdapterFileLayer
    parts: ours, in order
    """

    part: str
    layer: str
    shape: tuple[int, ...]
    shares: tuple[int, ...] = (1,)
    parts: tuple[int, ...] = (0,)

    @property
    def num_file_rows(self) -> int:
        """Output features of the file's layer."""
        own_shares_sum = sum(self.shares[part] for part in self.parts)
        return self.shape[0] * sum(self.shares) // own_shares_sum

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """(begin, end) in the file's layer of what is ours, in our order."""
        rows_per_share = self.num_file_rows // sum(self.shares)
        row_begins = [rows_per_share * sum(self.shares[:part]) for part in self.parts]
        return tuple(
            (begin, begin + rows_per_share * self.shares[part])
            for begin, part in zip(row_begins, self.parts, strict=True)
        )

    @property
    def is_whole(self) -> bool:
        """Whether the file's layer is ours, row by row."""
        return self.rows == ((0, self.num_file_rows),)

    @property
    def name(self) -> str:
        """For errors."""
        return f"{self.part}.{self.layer}"


def strip_text_model_levels(layer: str) -> str:
    """A layer's name without levels that files and releases of transformers differ on."""
    return _TEXT_LEVELS.sub("", layer)


class LayerTable:
    """Looks up layers by the names that files have for them."""

    def __init__(
        self,
        family: ModelFamily,
        shapes: Mapping[str, Mapping[str, Sequence[int]]],
        directory: Path | None = None,
    ) -> None:
        """shapes: of all weights, by part and name; directory: the model's, None for one without

        A model without a directory has diffusers' names alone.
        """
        self.family, self._default_part = family, family.denoiser.name
        self.layers: dict[str, dict[str, tuple[int, ...]]] = {
            part: dict(_list_layers(tensors)) for part, tensors in shapes.items()
        }
        self._places: dict[str, dict[str, list[LayerPlace]]] = {
            part: {
                _replace_dots(name): [LayerPlace(part, name, shape)]
                for name, shape in layer_shapes.items()
            }
            for part, layer_shapes in self.layers.items()
        }
        for layer in self.layers.get(family.denoiser.name, ()) if directory else ():
            assert directory is not None
            for file_layer in _list_layer_aliases(family, directory, layer):
                self.add_layer_alias(layer, file_layer)

    @classmethod
    def of_directory(cls, directory: Path) -> "LayerTable":
        """Of a model's directory, or its outline; raises ConfigError where weights are missing."""
        family = find_family(directory)
        parts = [family.denoiser, *family.text_encoders]
        shapes = {
            part.name: find_weights(directory / part.name, part.name).read_shapes()
            for part in parts
            if (directory / part.name).is_dir()
        }
        return cls(family, shapes, directory)

    def of_part(self, part: str) -> "LayerTable":
        """Of one network alone, whose layers files name without saying whose they are."""
        part_table = LayerTable(self.family, {})
        part_table.layers, part_table._places = (
            {part: self.layers[part]},
            {part: self._places[part]},
        )
        part_table._default_part = part
        return part_table

    def add_layer_alias(self, layer: str, file_layer: AdapterFileLayer) -> None:
        """Another name of a layer of the denoiser."""
        part = self.family.denoiser.name
        place = LayerPlace(
            part, layer, self.layers[part][layer], file_layer.shares, file_layer.parts
        )
        places = self._places[part].setdefault(_replace_dots(file_layer.name), [])
        if place not in places:
            places.append(place)
            places.sort(key=lambda place: place.parts)

    def find(self, file_layer: str) -> list[LayerPlace]:
        """The layers that a file's layer is, or is put together of; none where it is unknown."""
        for part, prefix in self._list_layer_prefixes():
            bare_name = file_layer.removeprefix(prefix)
            if bare_name != file_layer and (places := self._find_in_part(part, bare_name)):
                return places
        return self._find_in_part(self._default_part, file_layer)

    def _find_in_part(self, part: str, name: str) -> list[LayerPlace]:
        places_by_name = self._places[part]
        if places := places_by_name.get(_replace_dots(name)) or places_by_name.get(
            _replace_dots(strip_text_model_levels(name))
        ):
            return places
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                return self._find_in_part(part, name.removeprefix(prefix))
        return []

    def _list_layer_prefixes(self) -> Iterator[tuple[str, str]]:
        """Parts, and what stands before their layers in files; the more telling ones first."""
        encoder_counts_by_class: dict[str, int] = {}
        encoders = [e for e in self.family.text_encoders if e.name in self._places]
        for encoder_number, encoder in enumerate(self.family.text_encoders, start=1):
            if encoder not in encoders:
                continue
            encoder_class_index = encoder_counts_by_class.get(encoder.class_name, 0)
            encoder_counts_by_class[encoder.class_name] = encoder_class_index + 1
            for prefix in _list_text_prefixes(encoder, encoder_number, encoder_class_index):
                yield encoder.name, prefix
        if self.family.denoiser.name in self._places:
            yield self.family.denoiser.name, f"{self.family.denoiser.name}."


def _list_text_prefixes(
    encoder: TextEncoderPart, encoder_number: int, encoder_class_index: int
) -> tuple[str, ...]:
    """encoder_number: among all text encoders, from 1

    encoder_class_index: among those of its class
    """
    first_encoder_prefixes = (
        ("lora_te_", "text_encoders.qwen3.transformer.") if encoder_number == 1 else ()
    )
    encoder_class_prefixes = _TEXT_NAMES.get((encoder.class_name, encoder_class_index), ())
    return (
        f"lora_te{encoder_number}_",
        f"{encoder.name}.",
        *first_encoder_prefixes,
        *encoder_class_prefixes,
    )


def _list_layers(tensors: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in tensors.items():
        layer = name.removesuffix(".weight")
        if layer != name and len(shape) in _LAYER_DIMS:
            yield strip_text_model_levels(layer), tuple(shape)


def _list_layer_aliases(
    family: ModelFamily, directory: Path, layer: str
) -> Iterator[AdapterFileLayer]:
    """Names of a denoiser's layer beside diffusers' own."""
    if family.kohya_names and (
        kohya_layer := family.kohya_names.find(directory, family.denoiser.name, layer)
    ):
        yield AdapterFileLayer(
            kohya_layer.name.removeprefix(_KOHYA_PREFIX), (kohya_layer.part,), kohya_layer.shares
        )
    if family.list_adapter_layer_names:
        yield from family.list_adapter_layer_names(directory, layer)


def _replace_dots(name: str) -> str:
    return name.replace(".", "_")
