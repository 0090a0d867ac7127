"""Of accelerate: the settings of a process, which its first accelerator makes for all later ones.

Private: AcceleratorState._reset_state.
"""

from accelerate.state import AcceleratorState


def reset_accelerator_state() -> None:
    """Let the next accelerator of this process have its own precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
