"""Pipeline `zero-shot-object-segmentation`: images and videos in, object masks out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import ModelOutput

from .adaptation_amd import AdaptationResult, adapt_to_video, adaptation_scale
from .guided_filter_amd import guided_filter
from .image_io_amd import read_image
from .image_processing_amd import resize_masks
from .video_amd import FrameStream, is_video

TASK = "zero-shot-object-segmentation"
GUIDED_FILTER = "guided-filter"


class ZeroShotObjectSegmentationPipeline(Pipeline):
    """Segments the object of images and videos, without labels, prompts or clicks.

    Every image gives a list of one entry, the object:

    - `score`: mean object probability inside the mask, 0.0 where nothing is found;
    - `label`: "object";
    - `mask`: PIL image of mode "L", 0 or 255, of the size of the (upright) image;
    - `box`: `[x0, y0, x1, y1]` of the mask in pixels, right and lower border excluded; all 0 where
      nothing is found.

    With `return_segments=True` it gives all K segments as "segment_0", ..., each also with
    `soft_mask` (float32 array (H, W) in [0, 1]) and `is_object`.

    Args:
        adapt_steps: Default of the argument of the same name of a call.
        adapt_settings: Default of the argument of the same name of a call.
        kwargs: Arguments of every transformers pipeline (`model`, `image_processor`, `device`,
            `batch_size`, ...) and defaults of the arguments of a call.

    Raises:
        ValueError: If `model` is not an AMD model.
    """

    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    _registered_impl: Any = None

    def __init__(
        self,
        *args: Any,
        adapt_steps: int = 0,
        adapt_settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not any(parent.__name__ == "AMDModel" for parent in type(self.model).__mro__):
            raise ValueError(
                f"The task `{TASK}` needs an AMDModel, got {type(self.model).__name__}; pass the "
                "folder or Hub id of an AMD checkpoint."
            )
        if "AMDForSemanticSegmentation" in (self.model.config.architectures or ()):
            raise ValueError(
                f"The task `{TASK}` needs a checkpoint with segments, but this one was fine-tuned "
                "for semantic segmentation; use AMDForSemanticSegmentation for it."
            )
        if self.image_processor is None:
            raise ValueError(
                f"The task `{TASK}` needs an image processor; pass `image_processor="
                "AMDImageProcessor.from_model_config(model.config)`."
            )
        self.adapt_steps = adapt_steps
        self.adapt_settings = adapt_settings or {}
        self.adaptation: AdaptationResult | None = None

    def __call__(  # type: ignore[override]
        self,
        inputs: Any,
        *,
        adapt_steps: int | None = None,
        adapt_settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Segments one image, many images, or a video.

        Args:
            inputs: An image (path, address, PIL image, array, tensor), a list or generator or
                dataset of images, a video file, a folder of frames, or a video array
                (T, H, W, 3). A list may also hold videos.
            adapt_steps: Steps of test-time adaptation to the video before it is segmented; a list
                of images is then one video. The pipeline's model does not change.
            adapt_settings: Further arguments of `adapt_to_video`, such as `time_limit`.
            kwargs: `threshold` (probability in [0, 1) above which a pixel is object, default 0.5),
                `return_segments` (default False), `object_segment` (default
                `model.config.object_segment`), `refine` ("guided-filter": mask edges follow those
                of the image), `timeout` in seconds for addresses, `batch_size` and `num_workers`.

        Returns:
            For an image a list of entries. For a list, a list of what its elements give. For a
            video, a generator or a dataset, an iterator of such lists, one per frame: frames are
            decoded when they are asked for, so memory does not grow with the length.

        Raises:
            ValueError: If an input cannot be read (when its turn comes, for frames of a video), an
                argument is out of range, or adaptation is asked of an image or a generator.
            TypeError: If an input is of no type above.
        """
        steps = self.adapt_steps if adapt_steps is None else adapt_steps
        if steps:
            settings = {**self.adapt_settings, **(adapt_settings or {})}
            return self._call_adapted(inputs, steps, settings, kwargs)
        if is_video(inputs):
            return self._iterate(FrameStream(inputs), **kwargs)
        if isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4:
            return self(list(inputs), **kwargs)
        if isinstance(inputs, (list, tuple)):
            if any(is_video(entry) for entry in inputs):
                return [self(entry, adapt_steps=0, **kwargs) for entry in inputs]
            return list(self._iterate(inputs, **kwargs))
        if isinstance(inputs, Iterator):
            return self._iterate(inputs, **kwargs)
        return super().__call__(inputs, **kwargs)

    def _call_adapted(
        self, inputs: Any, steps: int, settings: dict[str, Any], kwargs: dict[str, Any]
    ) -> Any:
        """Segments one video, or each video of a list, with a model adapted to it."""
        is_list = isinstance(inputs, (list, tuple))
        if is_list and any(is_video(entry) for entry in inputs):
            return [self._call_adapted(entry, steps, settings, kwargs) for entry in inputs]
        is_array = isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4
        if not (is_list or is_array or is_video(inputs)):
            raise ValueError(
                "`adapt_steps` needs a video whose frames can be read twice: a video file, a "
                f"folder, a list of frames or a 4-D array, got {type(inputs).__name__}."
            )
        stream = FrameStream(inputs)
        results = self.adapted_to(inputs, steps, **settings)._iterate(stream, **kwargs)
        return list(results) if is_list or is_array else results

    def adapted_to(
        self, video: Any, num_steps: int = 100, **settings: Any
    ) -> "ZeroShotObjectSegmentationPipeline":
        """A pipeline whose model is adapted to one video, for several calls on it.

        Args:
            video: Frames as for `adapt_to_video`.
            num_steps: Steps of test-time adaptation.
            settings: Further arguments of `adapt_to_video`; by default frames have the size at
                which this pipeline segments.

        Returns:
            A new pipeline; its `adaptation` holds the `AdaptationResult`.
        """
        settings = {**adaptation_scale(self.image_processor), **settings, "return_history": True}
        model: Any = self.model
        result = adapt_to_video(model, video, num_steps, **settings)
        adapted = type(self)(
            model=result.model,
            image_processor=self.image_processor,
            task=self.task,
            device=self.device,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            **{**self._preprocess_params, **self._postprocess_params},
        )
        adapted.adaptation = result
        return adapted

    def _iterate(self, frames: Any, **kwargs: Any) -> Iterator[list[dict[str, Any]]]:
        """Lazily segments an iterable of images; a wrong argument is reported at once."""
        self._sanitize_parameters(**{k: v for k, v in kwargs.items() if k not in _LOADER_ARGUMENTS})
        return self._iterate_now(frames, kwargs)

    def _iterate_now(self, frames: Any, kwargs: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
        yield from super().__call__((frame for frame in frames), **kwargs)

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        return_segments: bool | None = None,
        object_segment: int | None = None,
        refine: str | None = None,
        timeout: float | None = None,
        local_files_only: bool | None = None,  # transformers.pipeline leaves it in
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"Unknown arguments {sorted(unknown)} of the task `{TASK}`; it takes threshold, "
                "return_segments, object_segment, refine, timeout, adapt_steps and adapt_settings."
            )
        if refine not in (None, GUIDED_FILTER):
            raise ValueError(f"`refine` must be {GUIDED_FILTER!r} or None, got {refine!r}.")
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must lie in [0, 1), got {threshold}.")
        num_segments = getattr(self.model.config, "num_segments", 0)
        if object_segment is not None and not 0 <= object_segment < num_segments:
            raise ValueError(
                f"`object_segment` must lie in 0..{num_segments - 1}, got {object_segment}."
            )
        preprocess = {"timeout": timeout, "refine": refine}
        postprocess = {
            "threshold": threshold,
            "return_segments": return_segments,
            "object_segment": object_segment,
        }
        return tuple(  # type: ignore[return-value]
            {name: value for name, value in given.items() if value is not None}
            for given in (preprocess, {}, postprocess)
        )

    def preprocess(  # type: ignore[override]
        self, input_: Any, timeout: float | None = 30.0, refine: str | None = None
    ) -> dict[str, Any]:
        """Reads one image; pixels and size travel in lists, so that sizes may mix in a batch.

        The image itself travels along where its edges are asked for.
        """
        processor: Any = self.image_processor
        rgb = read_image(input_, max_pixels=processor.max_pixels, timeout=timeout)
        features = processor(rgb, return_tensors="pt", input_data_format="channels_last")
        pixel_values = features["pixel_values"][0].to(self.model.dtype)
        guide = None if refine is None else Image.fromarray(rgb)
        return {
            "pixel_values": [pixel_values],
            "target_size": [rgb.shape[:2]],
            "guide": [guide],
        }

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> ModelOutput:
        """Segment masks of a batch; images of one size run together."""
        images = _flatten(input_tensors["pixel_values"])
        groups: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape, []).append(index)
        masks: list[Any] = [None] * len(images)
        with _eval_mode(self.model):
            for indices in groups.values():
                batch = torch.stack([images[index] for index in indices])
                outputs = self.model(pixel_values=batch)
                for index, mask in zip(indices, outputs.segment_masks.float(), strict=True):
                    masks[index] = mask
        return ModelOutput(
            segment_masks=masks,
            target_size=_flatten(input_tensors["target_size"]),
            guide=_flatten(input_tensors["guide"]),
        )

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: Any,
        threshold: float = 0.5,
        return_segments: bool = False,
        object_segment: int | None = None,
    ) -> list[dict[str, Any]]:
        """Entries of one image, as the class describes them."""
        masks, size, guide = (model_outputs[k] for k in ("segment_masks", "target_size", "guide"))
        if isinstance(masks, list):  # a single image, not taken out of a batch
            masks, size, guide = masks[0][None], size[0], guide[0]
        is_object = self.model.config.object_segment if object_segment is None else object_segment
        indices = range(masks.shape[1]) if return_segments else [is_object]
        soft_masks = resize_masks(masks[:, list(indices)], [size])[0]
        if guide is not None:
            pixels = torch.from_numpy(np.array(guide)).permute(2, 0, 1)
            soft_masks = guided_filter(pixels.float() / 255, soft_masks)
        entries = []
        for index, soft_mask in zip(indices, soft_masks.numpy(), strict=True):
            entry = describe_mask(soft_mask, threshold)
            entry["label"] = f"segment_{index}" if return_segments else "object"
            if return_segments:
                entry["soft_mask"] = soft_mask
                entry["is_object"] = index == is_object
            entries.append(entry)
        return entries


_LOADER_ARGUMENTS = ("batch_size", "num_workers")


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Runs a model in eval mode and puts every module back into the mode it was in."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def describe_mask(soft_mask: np.ndarray, threshold: float) -> dict[str, Any]:
    """Score, label, mask and box of one segment.

    Args:
        soft_mask: Probabilities of shape (H, W).
        threshold: Pixels above it belong to the mask.
    """
    mask = soft_mask > threshold
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return {
        "score": float(soft_mask[mask].mean(dtype=np.float64)) if mask.any() else 0.0,
        "label": "object",
        "mask": image,
        "box": list(image.getbbox() or (0, 0, 0, 0)),
    }


def _flatten(entries: list[Any]) -> list[Any]:
    """Undoes the list of lists into which transformers collates a batch of lists."""
    is_nested = isinstance(entries[0], list)
    return [entry for inner in entries for entry in inner] if is_nested else entries


def register_pipeline(default_checkpoint: str) -> None:
    """Makes `transformers.pipeline("zero-shot-object-segmentation")` work.

    Args:
        default_checkpoint: Folder or Hub id of the model that is used when none is named.
    """
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=ZeroShotObjectSegmentationPipeline,
            pt_model=AutoModel,
            default={"model": (default_checkpoint, "main")},
            type="image",
        )
    _set_saved_entry()


def _set_saved_entry() -> None:
    """Sets what `save_pretrained` writes into `config.json`, without a path of this machine.

    It is set also where this class was itself loaded from a saved folder and is not registered.
    """
    ZeroShotObjectSegmentationPipeline._registered_impl = {
        TASK: {"impl": ZeroShotObjectSegmentationPipeline, "pt": (AutoModel,)}
    }


_set_saved_entry()

__all__ = ["TASK", "ZeroShotObjectSegmentationPipeline", "describe_mask", "register_pipeline"]
