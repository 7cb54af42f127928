"""Configuration of AMD: architecture, loss weights and the choice of the object segment."""

import difflib
import logging
import math
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

# Keys that transformers itself adds to a saved configuration; anything else that is unknown is a
# misspelled field.
_FOREIGN_KEYS = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "is_composition",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_return_dict",
    }
)
_LEAST_ONE = frozenset(
    {
        "context_channels",
        "estimator_channels",
        "head_dilation",
        "num_head_convs",
        "pyramid_channels",
        "readout_channels",
    }
)


@strict
class AMDConfig(PreTrainedConfig):
    """Settings of Appearance-Motion Decomposition; the defaults are the published model.

    Only keyword arguments are accepted. Sizes are (height, width).

    Args:
        num_segments: Number K of segments per image. The paper uses 5 and reports unstable training
            below 4.
        object_segment: Index of the segment that is read as the object. The published README says
            0, the published code reads 1; it differs from run to run.
        object_segment_confidence: Confidence in [0, 1] of the label-free choice of
            `object_segment`, or `None` where it was set by hand.
        num_channels: Channels of an input image; only 3 (RGB) is supported.
        stem_channels: Channels of the first convolution of the appearance pathway.
        base_channels: Width of the first residual stage; stage i is `base_channels * 2**i` wide.
        bottleneck_expansion: Output channels of a residual block, as a multiple of its width.
        block_counts: Number of residual blocks of each stage.
        block_strides: Stride of each stage; (1, 2, 1, 1) gives an output stride of 8.
        block_dilations: Dilation of each stage; the published code dilates the last one only.
        head_channels: Channels of the convolutional head of the appearance pathway.
        num_head_convs: Number of 3x3 convolutions of that head.
        head_dilation: Dilation (and padding) of these convolutions.
        head_dropout: Probability that a channel is dropped before the classifier, in training.
        zero_init_residual: Start every residual block as the identity.
        motion_size: Size at which motion, synthesis and loss live; frames are resized to it
            whatever their aspect ratio. Each side is a multiple of `2**len(pyramid_channels)`.
        pyramid_channels: Channels of the feature pyramid of the motion pathway, fine to coarse.
        num_motion_levels: Number of pyramid levels, from the coarsest, that refine the motion.
        search_range: Radius r of the cost volume, which has `(2 r + 1)**2` channels.
        context_channels: Channels of the reference features that join the cost volume.
        estimator_channels: Channels of the five convolutions of the motion estimator.
        readout_channels: Hidden channels of the read-out from motion features to a motion vector.
        negative_slope: Slope of the leaky rectifier in the motion pathway.
        normalize_cost_volume: Normalize both feature maps to zero mean and unit variance before
            the correlation (UFlow, Jonschkowski et al. 2020). Off in the published model.
        motion_initialization: "default" keeps PyTorch's initialization of the motion pathway, as
            the published code does in effect; "kaiming" preserves activations and starts with
            near-zero motion, which frees small runs from the zero-flow trap.
        image_mean: Mean of the RGB channels on the 0..255 scale, used to undo the normalization.
        image_std: Standard deviation of the RGB channels on the 0..255 scale.
        l1_weight: Weight of the absolute difference in the photometric loss.
        ssim_weight: Weight of the structural dissimilarity in the photometric loss.
        scale_weights: Weight of the photometric loss at each scale, fine to coarse.
        visibility_threshold: A pixel is visible where the splat map reaches this value.

    Raises:
        ValueError: If a field is out of range; the message names the field.

    Source: published code, METHOD facts in `docs/method.md`.
    """

    model_type = "amd"

    num_segments: int = 5
    object_segment: int = 0
    object_segment_confidence: float | int | None = None

    num_channels: int = 3
    stem_channels: int = 64
    base_channels: int = 64
    bottleneck_expansion: int = 4
    block_counts: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    block_strides: list[int] | tuple[int, ...] = (1, 2, 1, 1)
    block_dilations: list[int] | tuple[int, ...] = (1, 1, 1, 2)
    head_channels: int = 256
    num_head_convs: int = 2
    head_dilation: int = 6
    head_dropout: float | int = 0.1
    zero_init_residual: bool = True

    motion_size: list[int] | tuple[int, ...] = (384, 640)
    pyramid_channels: list[int] | tuple[int, ...] = (16, 32, 64, 96, 128, 192)
    num_motion_levels: int = 5
    search_range: int = 4
    context_channels: int = 32
    estimator_channels: list[int] | tuple[int, ...] = (128, 128, 96, 64, 32)
    readout_channels: int = 64
    negative_slope: float | int = 0.1
    normalize_cost_volume: bool = False
    motion_initialization: str = "default"

    image_mean: list[float | int] | tuple[float | int, ...] = (123.675, 116.28, 103.53)
    image_std: list[float | int] | tuple[float | int, ...] = (58.395, 57.12, 57.375)
    l1_weight: float | int = 0.15
    ssim_weight: float | int = 0.85
    scale_weights: list[float | int] | tuple[float | int, ...] = (1.0, 1.0, 1.0, 1.0, 0.0)
    visibility_threshold: float | int = 0.2

    def __post_init__(self, **kwargs: Any) -> None:
        """Normalizes sequences to lists, warns about unknown fields and validates."""
        for field in fields(self):
            if isinstance(getattr(self, field.name), tuple):
                setattr(self, field.name, list(getattr(self, field.name)))
        self._warn_about_unknown_fields(kwargs)
        if not type(self).__module__.startswith("transformers_modules"):
            # The locally registered pipeline serves this task; a saved entry would make
            # transformers ask for remote code although the package is installed.
            kwargs.pop("custom_pipelines", None)
        try:
            super().__post_init__(**kwargs)
        except (TypeError, AttributeError, LookupError) as error:
            raise ValueError(
                f"A field of every configuration, such as `dtype` or `id2label`, makes no sense "
                f"({error}); restore the configuration."
            ) from error
        if self.dtype is not None and type(self.dtype).__name__ != "dtype":
            raise ValueError(f"`dtype` must name a type of torch, got {self.dtype!r}.")
        self._validate_numbers()
        self._validate_segments()
        self._validate_appearance()
        self._validate_motion()

    def _warn_about_unknown_fields(self, kwargs: dict[str, Any]) -> None:
        known = {field.name for field in fields(self)}
        for name in kwargs:
            if name in known or name in _FOREIGN_KEYS or hasattr(PreTrainedConfig, name):
                continue
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else "."
            logger.warning("`%s` is not a field of AMDConfig and has no effect%s", name, hint)

    def _validate_numbers(self) -> None:
        for name in type(self).__annotations__:
            value = getattr(self, name)
            numbers = value if isinstance(value, list) else [value]
            # JSON as Python reads it knows NaN and infinity, which no comparison below catches.
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ValueError(f"`{name}` must be finite, got {value}.")
            if name in _LEAST_ONE and (not numbers or min(numbers) < 1):
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.search_range < 1:
            raise ValueError(f"`search_range` must be at least 1, got {self.search_range}.")

    def _validate_segments(self) -> None:
        if self.num_segments < 2:
            raise ValueError(
                f"`num_segments` must be at least 2 to separate an object from its background, "
                f"got {self.num_segments}; the paper uses 5."
            )
        if not 0 <= self.object_segment < self.num_segments:
            raise ValueError(
                f"`object_segment` must be an index in 0..{self.num_segments - 1}, "
                f"got {self.object_segment}."
            )
        confidence = self.object_segment_confidence
        if confidence is not None and not 0 <= confidence <= 1:
            raise ValueError(
                f"`object_segment_confidence` must be None or lie in [0, 1], got {confidence}."
            )
        if self.num_channels != 3:
            raise ValueError(
                f"`num_channels` must be 3 (RGB frames), got {self.num_channels}; "
                "convert other images to RGB."
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"`{name}` must have 3 values (RGB), got {getattr(self, name)}.")
        if min(self.image_std) <= 0:
            raise ValueError(f"`image_std` must be positive, got {self.image_std}.")

    def _validate_appearance(self) -> None:
        stages = len(self.block_counts)
        if not stages == len(self.block_strides) == len(self.block_dilations):
            raise ValueError(
                "`block_counts`, `block_strides` and `block_dilations` must have one entry per "
                f"stage, got {len(self.block_counts)}, {len(self.block_strides)} and "
                f"{len(self.block_dilations)} entries."
            )
        for name in ("block_counts", "block_strides", "block_dilations"):
            if stages == 0 or min(getattr(self, name)) < 1:
                raise ValueError(
                    f"`{name}` must hold positive integers, got {getattr(self, name)}."
                )
        for name in ("stem_channels", "base_channels", "bottleneck_expansion", "head_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"`head_dropout` must lie in [0, 1), got {self.head_dropout}.")

    def _validate_motion(self) -> None:
        multiple = 2 ** len(self.pyramid_channels)
        if len(self.motion_size) != 2 or any(
            s < multiple or s % multiple for s in self.motion_size
        ):
            raise ValueError(
                f"`motion_size` must be (height, width) in multiples of {multiple} for "
                f"{len(self.pyramid_channels)} pyramid levels, got {self.motion_size}."
            )
        if not 1 <= self.num_motion_levels <= len(self.pyramid_channels):
            raise ValueError(
                f"`num_motion_levels` must lie in 1..{len(self.pyramid_channels)} (the pyramid's "
                f"levels), got {self.num_motion_levels}."
            )
        if len(self.estimator_channels) != 5:
            raise ValueError(
                f"`estimator_channels` must have 5 entries, got {self.estimator_channels}."
            )
        if len(self.scale_weights) != self.num_motion_levels:
            raise ValueError(
                f"`scale_weights` must have one weight per motion level "
                f"({self.num_motion_levels}), got {self.scale_weights}."
            )
        if min(self.scale_weights) < 0 or max(self.scale_weights) == 0:
            raise ValueError(
                "`scale_weights` must not be negative and at least one must be positive, "
                f"got {self.scale_weights}."
            )
        if self.motion_initialization not in ("default", "kaiming"):
            raise ValueError(
                '`motion_initialization` must be "default" or "kaiming", '
                f'got "{self.motion_initialization}".'
            )
        for name in ("l1_weight", "ssim_weight", "visibility_threshold"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of a saved configuration and the arguments that are left.

        Args:
            pretrained_model_name_or_path: Folder, `config.json` or Hub id.
            **kwargs: As for `from_pretrained`.

        Raises:
            OSError: If there is no configuration, or it is no JSON.
            ValueError: If it is no JSON object, or nested beyond reason.
        """
        try:
            found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (TypeError, AttributeError, RecursionError) as error:
            found, rest = None, {}
            reason = f" ({error})"
        else:
            reason = ""
        if not isinstance(found, dict):
            raise ValueError(
                f"The configuration of {pretrained_model_name_or_path} must be a JSON object of "
                f"fields{reason}; restore its config.json."
            )
        return found, rest

    @property
    def output_stride(self) -> int:
        """Stride of the segment masks: 4 of the stem times the strides of the stages."""
        stride = 4
        for stage_stride in self.block_strides:
            stride *= stage_stride
        return stride

    @classmethod
    def official(cls, **overrides: Any) -> "AMDConfig":
        """The published model: dilated ResNet-50, K=5, motion at 384x640, 30.5 M parameters."""
        return cls(**overrides)

    @classmethod
    def small(cls, **overrides: Any) -> "AMDConfig":
        """The bundled model: 4.0 M parameters, motion at 128x192, and the small-scale cures.

        Differs from the published model in width (5/16 of it), motion size, width of the motion
        estimator, cost-volume normalization and the initialization of the motion pathway.
        """
        settings: dict[str, Any] = {
            "stem_channels": 20,
            "base_channels": 20,
            "head_channels": 64,
            "motion_size": (128, 192),
            "estimator_channels": (64, 64, 64, 48, 32),
            "normalize_cost_volume": True,
            "motion_initialization": "kaiming",
        }
        return cls(**{**settings, **overrides})

    @classmethod
    def tiny(cls, **overrides: Any) -> "AMDConfig":
        """A model of a few thousand weights with every part in place, for tests and dry runs."""
        settings: dict[str, Any] = {
            "stem_channels": 4,
            "base_channels": 4,
            "block_counts": (1, 1, 1, 1),
            "head_channels": 8,
            "head_dilation": 2,
            "motion_size": (64, 64),
            "pyramid_channels": (4, 4, 8, 8),
            "num_motion_levels": 3,
            "search_range": 2,
            "context_channels": 4,
            "estimator_channels": (8, 8, 8, 8, 8),
            "readout_channels": 8,
            "scale_weights": (1.0, 1.0, 0.0),
        }
        return cls(**{**settings, **overrides})


__all__ = ["AMDConfig"]
