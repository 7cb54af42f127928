"""Image processor: images in, normalized pixels out; model outputs in, masks out.

Resizing runs in PyTorch (bilinear, no antialiasing, whole grey levels), which reproduces the
published preprocessing and needs no torchvision.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .configuration_amd import AMDConfig
from .image_io_amd import MAX_IMAGE_PIXELS, read_image, resize_image, resized_size


class AMDImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of `AMDImageProcessor` beyond those of every image processor."""

    max_size: int | None
    max_pixels: int | None
    object_segment: int | None


class AMDImageProcessor(PilBackend):
    """Prepares images for `AMDModel` and turns its outputs into masks of the images' sizes.

    Takes paths, addresses, PIL images, numpy arrays and torch tensors (grey, RGB, RGBA, palette,
    8 or 16 bits, floats in [0, 1] or [0, 255]; (H, W, C) or (C, H, W)), batches (4-D arrays), lists
    of them, and lists of frame lists. Portrait images keep their orientation.

    Args:
        size: `{"shortest_edge": 392}` keeps the aspect ratio, `{"height": h, "width": w}` does not.
            An optional `"longest_edge"` takes the place of `max_size`.
        max_size: Cap of the long side in pixels after resizing; no side gets below 32 pixels.
        max_pixels: Largest image that is accepted, in pixels (height * width); a guard against
            decompression bombs and full memory.
        object_segment: Segment that `post_process_object_segmentation` reads by default; keep it
            equal to `AMDConfig.object_segment`, as `from_model_config` does.
        do_resize: Whether to resize; without it sides must be at least 32 pixels.
        do_normalize: Whether to subtract `image_mean` and divide by `image_std`.
        image_mean: Mean of the RGB channels on the 0..255 scale.
        image_std: Standard deviation of the RGB channels on the 0..255 scale.

    Source: the published test pipeline: short side 392 = int(400 * 0.98), bilinear without
    antialiasing, 8-bit result, (x - mean) / std on the 0..255 scale. It transposes portrait images,
    which this processor does not.
    """

    valid_kwargs = AMDImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012 - as in every transformers processor

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 392}  # noqa: RUF012
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_rescale = False
    do_normalize = True
    image_mean = (123.675, 116.28, 103.53)
    image_std = (58.395, 57.12, 57.375)
    max_size = 1344
    max_pixels = MAX_IMAGE_PIXELS
    object_segment = 0

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of a saved processor and the arguments that are left.

        Args:
            pretrained_model_name_or_path: Folder, `preprocessor_config.json` or Hub id.
            **kwargs: As for `from_pretrained`.

        Raises:
            OSError: If there are no settings, or they are no JSON.
            ValueError: If they are no JSON object, or nested beyond reason.
        """
        try:
            found, rest = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except (TypeError, AttributeError, RecursionError):
            found, rest = None, {}
        if not isinstance(found, dict):
            raise ValueError(
                f"The image processor of {pretrained_model_name_or_path} must be a JSON object of "
                "settings; restore its preprocessor_config.json."
            )
        return found, rest

    @classmethod
    def from_model_config(cls, config: AMDConfig, **settings: Any) -> "AMDImageProcessor":
        """A processor with the normalization and the object segment of a model configuration.

        Args:
            config: Configuration of the model that gets the images.
            settings: Any argument of the class.
        """
        from_config = {
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
            "object_segment": config.object_segment,
        }
        return cls(**{**from_config, **settings})

    # Inputs: from anything to a list of uint8 (3, H, W) arrays.

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Passes images on as they are; they are read one by one in `process_image`."""
        return image_url_or_urls

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Flat list of images, or list of lists of frames."""
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim in (4, 5):
            return [list(image) if image.ndim == 4 else image for image in images]
        if not isinstance(images, (list, tuple)):
            return [images]
        if not images:
            raise ValueError("`images` must hold at least one image, got an empty list.")
        is_nested = [isinstance(entry, (list, tuple)) or _num_dims(entry) == 4 for entry in images]
        if any(is_nested) != all(is_nested):
            raise ValueError("`images` must be all single images or all lists of frames, got both.")
        if not all(is_nested):
            return list(images)
        if len({len(entry) for entry in images}) != 1 or len(images[0]) == 0:
            raise ValueError(
                "Lists of frames must have one common length, got "
                f"{sorted({len(entry) for entry in images})}."
            )
        return [list(entry) for entry in images]

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Reads one image of any kind as a uint8 RGB array of shape (3, H, W).

        Raises:
            ValueError: If the image cannot be read or has more than `max_pixels` pixels.
        """
        is_first = (
            None if input_data_format is None else input_data_format == ChannelDimension.FIRST
        )
        max_pixels = kwargs.get("max_pixels") or self.max_pixels
        rgb = read_image(image, max_pixels=max_pixels, channels_first=is_first)
        return np.moveaxis(rgb, -1, 0)

    # From arrays to `pixel_values`.

    def _preprocess(self, images: list[Any], *args: Any, **kwargs: Any) -> BatchFeature:
        """Resizes and normalizes uint8 (3, H, W) arrays; lists of frames gain a frame axis."""
        is_nested = isinstance(images[0], list)
        flat = [frame for entry in images for frame in entry] if is_nested else images
        pixels = [self._normalized(image, **kwargs) for image in flat]
        return_tensors = kwargs.get("return_tensors")
        if return_tensors is None and not is_nested:
            return BatchFeature({"pixel_values": pixels})
        sizes = sorted({tuple(tensor.shape[-2:]) for tensor in pixels})
        if len(sizes) > 1:
            raise ValueError(
                f"Images of sizes {sizes} (after resizing) cannot form one batch; process them one "
                'by one, or set size={"height": ..., "width": ...}.'
            )
        batch = torch.stack(pixels)
        if is_nested:
            batch = batch.unflatten(0, (len(images), len(images[0])))
        return BatchFeature({"pixel_values": batch}, tensor_type=return_tensors)

    @staticmethod
    def _normalized(image: np.ndarray, **settings: Any) -> Tensor:
        """One resized and normalized image, float32 of shape (3, H, W)."""
        tensor = torch.from_numpy(np.ascontiguousarray(image))[None].to(settings.get("device"))
        if settings["do_resize"]:
            height, width = tensor.shape[-2:]
            size = output_size(height, width, settings["size"], settings.get("max_size"))
            tensor = resize_image(tensor, size)
        tensor = tensor.float()
        if settings["do_rescale"]:
            tensor = tensor * settings["rescale_factor"]
        if settings["do_normalize"]:
            mean = tensor.new_tensor(settings["image_mean"]).view(1, 3, 1, 1)
            std = tensor.new_tensor(settings["image_std"]).view(1, 3, 1, 1)
            tensor = (tensor - mean) / std
        return tensor[0]

    # From model outputs to masks.

    def post_process_object_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        threshold: float = 0.5,
        object_segment: int | None = None,
        return_soft_masks: bool = False,
    ) -> list[Tensor]:
        """Object masks at the images' sizes.

        The soft mask of the object segment is enlarged bilinearly (align_corners=True) and compared
        with `threshold`; exactly `threshold` is background.

        Args:
            outputs: Output of `AMDModel` for B images, or for B/2 pairs (frame 1, frame 2, ...).
            target_sizes: One (height, width) per image; None keeps the size of the masks.
            threshold: Probability in [0, 1) above which a pixel belongs to the object.
            object_segment: Segment to read; None takes that of this processor.
            return_soft_masks: Return probabilities in place of decisions.

        Returns:
            B tensors of shape (H, W) on the device of `outputs`: bool, or float32 in [0, 1].

        Raises:
            ValueError: If `outputs` holds no segments, or an argument is out of range.

        Source: the published evaluation (probability map enlarged, > 0.5 is object).
        """
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must lie in [0, 1), got {threshold}.")
        masks = _segment_masks(outputs)
        segment = self.object_segment if object_segment is None else object_segment
        if not 0 <= segment < masks.shape[1]:
            raise ValueError(
                f"`object_segment` must lie in 0..{masks.shape[1] - 1} for this model, got "
                f"{segment}."
            )
        soft_masks = resize_masks(masks[:, segment : segment + 1], target_sizes)
        results = [mask[0] for mask in soft_masks]
        return results if return_soft_masks else [mask > threshold for mask in results]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
    ) -> list[Tensor]:
        """The most likely class of every pixel, at the images' sizes.

        Args:
            outputs: Output of `AMDForSemanticSegmentation` for B images; an output of `AMDModel`
                gives the most likely segment.
            target_sizes: One (height, width) per image; None keeps the size of the logits.

        Returns:
            B int64 tensors of shape (H, W).

        Raises:
            ValueError: If `outputs` holds no logits or the number of sizes differs from B.
        """
        logits = getattr(outputs, "logits", None)
        if logits is None:
            logits = _segment_masks(outputs)
        scores = resize_masks(logits, target_sizes, align_corners=False)
        return [score.argmax(dim=0) for score in scores]


def _num_dims(entry: Any) -> int:
    """Number of axes of an array or tensor; 0 for anything else."""
    return entry.ndim if isinstance(entry, (np.ndarray, Tensor)) else 0


def output_size(height: int, width: int, size: SizeDict, max_size: int | None) -> tuple[int, int]:
    """The size (H, W) of the resized image under the settings of a processor."""
    if size.height and size.width:
        return size.height, size.width
    if size.shortest_edge:
        return resized_size(height, width, size.shortest_edge, size.longest_edge or max_size)
    raise ValueError(
        f'`size` must be {{"shortest_edge": s}} or {{"height": h, "width": w}}, got {dict(size)}.'
    )


def _segment_masks(outputs: Any) -> Tensor:
    """Float32 segment masks (B, K, h, w) of a model output; pairs become two images."""
    masks = getattr(outputs, "segment_masks", None)
    if masks is None:
        logits = getattr(outputs, "segment_logits", None)
        if logits is None:
            raise ValueError(
                "`outputs` must be an output of AMDModel with `segment_logits` or "
                f"`segment_masks`, got {type(outputs).__name__} without them."
            )
        masks = logits.float().softmax(dim=-3)
    return masks.float().flatten(0, 1) if masks.ndim == 5 else masks.float()


def resize_masks(
    masks: Tensor,
    target_sizes: Sequence[tuple[int, int]] | Tensor | None,
    align_corners: bool = True,
) -> list[Tensor]:
    """Bilinear copies of every mask at its own size.

    Args:
        masks: Tensor of shape (B, C, h, w).
        target_sizes: B sizes (height, width), or None to keep (h, w).
        align_corners: True as in the published evaluation of segment masks.

    Returns:
        B float32 tensors of shape (C, H, W).

    Raises:
        ValueError: If there are not B sizes of two positive numbers.
    """
    if target_sizes is None:
        return list(masks.float())
    sizes = [tuple(int(side) for side in size) for size in target_sizes]
    if len(sizes) != len(masks) or any(len(size) != 2 or min(size) < 1 for size in sizes):
        raise ValueError(
            f"`target_sizes` must be {len(masks)} positive (height, width) pairs, one per image, "
            f"got {sizes}."
        )
    return [
        F.interpolate(mask[None].float(), size=size, mode="bilinear", align_corners=align_corners)[
            0
        ]
        for mask, size in zip(masks, sizes, strict=True)
    ]


__all__ = ["AMDImageProcessor"]
