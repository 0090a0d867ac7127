"""Of diffusers: where it writes down what a part was loaded from, and how it checkpoints blocks.

Private: the key _name_or_path of a part's configuration, _gradient_checkpointing_func of a network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What a block of Chroma with one stream is given when it is checkpointed: less than otherwise.
_NUM_INPUTS = 3


def set_component_source(part: Any, name: str) -> None:
    """Have a part's saved configuration name this as its source, not a folder of this machine."""
    part.register_to_config(_name_or_path=name)


@contextmanager
def passing_mask_to_checkpointed_blocks(transformer: Any, mask: Any) -> Iterator[None]:
    """While it lasts, checkpointed blocks of a ChromaTransformer2DModel all get the mask.

    diffusers leaves it out for those with one stream, which then see padding. mask: or None
    """
    if mask is None or not transformer.gradient_checkpointing:
        yield
        return
    checkpointing_function = transformer._gradient_checkpointing_func

    def checkpoint_block_with_mask(block: Any, *inputs: Any) -> Any:
        return checkpointing_function(
            block, *inputs, *([mask] if len(inputs) == _NUM_INPUTS else [])
        )

    transformer._gradient_checkpointing_func = checkpoint_block_with_mask
    try:
        yield
    finally:
        transformer._gradient_checkpointing_func = checkpointing_function
