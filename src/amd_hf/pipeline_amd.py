"""Pipeline `zero-shot-object-segmentation`."""
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY


class ZeroShotObjectSegmentationPipeline(Pipeline):
    """Images and videos in, object masks out."""


def register_pipeline(default_checkpoint: str) -> None:
    """Registers the task."""
