"""The models that the demo offers, by label."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch

from amd_hf import DEFAULT_CHECKPOINT, AMDImageProcessor, AMDModel

BUNDLED = f"{Path(DEFAULT_CHECKPOINT).name} (bundled)"

_MODELS = {BUNDLED: DEFAULT_CHECKPOINT}


def offer_models(names: Iterable[str]) -> list[str]:
    """Adds models to the chooser and returns the labels of all, the bundled one first.

    Visitors choose by label, so that they neither see nor load any other place on the server.

    Args:
        names: Hub ids or folders of checkpoints.
    """
    for name in names:
        _MODELS[Path(name).name if Path(name).is_dir() else name] = name
    return list(_MODELS)


@lru_cache(maxsize=2)
def load_model(label: str = BUNDLED) -> tuple[AMDModel, AMDImageProcessor]:
    """Returns the model on the best device, in eval mode, and its image processor.

    Args:
        label: A label that `offer_models` returned.

    Raises:
        ValueError: If no model of that label is offered.
    """
    if label not in _MODELS:
        raise ValueError(f"There is no model {label!r}; choose one of {', '.join(_MODELS)}.")
    name = _MODELS[label]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: AMDModel = AMDModel.from_pretrained(name).eval()
    torch.nn.Module.to(model, device)
    return model, AMDImageProcessor.from_pretrained(name)
