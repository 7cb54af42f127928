"""A backbone that is pre-trained alone: the same as in fine-tuning, saved as a start for it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from amd_hf.configuration_amd import AMDConfig
from amd_hf.modeling_amd import AMDForSemanticSegmentation


def new_backbone(config: AMDConfig) -> Any:
    """The backbone with the initialization that it has in fine-tuning."""
    return AMDForSemanticSegmentation(config).appearance.backbone


def save_backbone(backbone: Any, config: AMDConfig, folder: str | Path) -> None:
    """Writes a backbone as a start for fine-tuning: config.json, model.safetensors.

    `AMDForSemanticSegmentation.from_pretrained` reads it; head and classifier are new then.

    Args:
        backbone: The backbone.
        config: Its configuration.
        folder: Folder to write into; made where it does not exist.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = deepcopy(config)
    config.architectures = None  # a backbone alone is none of the models
    config.save_pretrained(folder)
    weights = {
        f"appearance.backbone.{name}": value.detach().cpu().contiguous()
        for name, value in backbone.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
