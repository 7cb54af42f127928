"""What goes wrong with damaged or foreign checkpoints, as one sentence for the command line."""

from __future__ import annotations

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

LOAD_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError, SafetensorError, StrictDataclassError),
)
"""What transformers and safetensors raise on files of a checkpoint that make no sense."""


def unusable_checkpoint(name: str, error: Exception) -> ValueError:
    """The error of a checkpoint that cannot be loaded.

    Args:
        name: Hub id or folder, as it was given.
        error: One of `LOAD_ERRORS`; its first line is the reason.
    """
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return ValueError(
        f"There is no checkpoint {name!r} that can be loaded ({reason}); pass a Hub id or a folder "
        "written by save_pretrained."
    )
