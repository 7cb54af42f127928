"""Unsupervised object segmentation learned from raw video.

Importing this package registers its configuration, models, image processor and pipeline with
transformers; it needs no optional extra. `amd_hf.pipeline` is that of transformers.
"""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from amd_hf._version import __version__
from amd_hf.configuration_amd import AMDConfig
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.modeling_amd import (
    AMDForSemanticSegmentation,
    AMDModel,
    AMDModelOutput,
    AMDPreTrainedModel,
)

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "amd-small-clips")
"""Folder of the bundled checkpoint; needs no network."""

AutoConfig.register(AMDConfig.model_type, AMDConfig, exist_ok=True)
AutoModel.register(AMDConfig, AMDModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(AMDConfig, AMDForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(
    AMDConfig,
    image_processor_classes={"pil": AMDImageProcessor, "torchvision": AMDImageProcessor},
    exist_ok=True,
)
for _class, _auto in (
    (AMDConfig, "AutoConfig"),
    (AMDModel, "AutoModel"),
    (AMDForSemanticSegmentation, "AutoModelForSemanticSegmentation"),
    (AMDImageProcessor, "AutoImageProcessor"),
):
    # Saved folders carry the code that loads them where this package is not installed.
    _class.register_for_auto_class(_auto)

from amd_hf.pipeline_amd import (  # noqa: E402  (the default model must be known first)
    ZeroShotObjectSegmentationPipeline,
    register_pipeline,
)

register_pipeline(DEFAULT_CHECKPOINT)

__all__ = [
    "DEFAULT_CHECKPOINT",
    "AMDConfig",
    "AMDForSemanticSegmentation",
    "AMDImageProcessor",
    "AMDModel",
    "AMDModelOutput",
    "AMDPreTrainedModel",
    "ZeroShotObjectSegmentationPipeline",
    "__version__",
    "pipeline",
]
