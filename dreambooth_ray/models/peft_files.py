"""Names that peft gives to an adapter's files and weights. Nothing heavy is imported."""

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Before the names of weights.
PREFIX = "base_model.model."
# What diffusers writes of an adapter's settings, in the metadata of a file.
ADAPTER_METADATA_KEY = "lora_adapter_metadata"
