"""Names that peft gives to an adapter's files and weights. Nothing heavy is imported."""

import re

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Before the names of weights.
PREFIX = "base_model.model."
# Behind a layer's name: of LoRA and DoRA, LoHa and LoKr.
_FACTOR = re.compile(r"\.(?:lora|hada|lokr)_")
# What diffusers writes of an adapter's settings, in the metadata of a file.
ADAPTER_METADATA_KEY = "lora_adapter_metadata"


def layer_of(weight: str) -> str:
    """The layer that a weight of an adapter's file belongs to."""
    return _FACTOR.split(weight.removeprefix(PREFIX), maxsplit=1)[0]
