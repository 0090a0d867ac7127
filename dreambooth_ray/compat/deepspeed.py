"""Of DeepSpeed: what it compiles, and its converter of states. An extra: nothing is imported here.

Private: deepspeed.ops.__compatible_ops__; the arguments of deepspeed.checkpoint.ds_to_universal,
which is a script.
"""

import argparse
import contextlib
import io
from pathlib import Path


def forgo_compiled_communication() -> None:
    """Use gloo alone, which does the same work as the operation that DeepSpeed would compile.

    It is compiled on first use, and a worker killed then leaves a lock that the next one waits
    for without end.
    """
    import deepspeed  # noqa: PLC0415

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def write_universal_state(folder: Path, universal_folder: Path) -> None:
    """Write a saved state again in the form that any number of workers can load."""
    from deepspeed.checkpoint import ds_to_universal  # noqa: PLC0415

    converter_arguments = argparse.Namespace(
        input_folder=str(folder),
        output_folder=str(universal_folder),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(converter_arguments)
