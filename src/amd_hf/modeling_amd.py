"""AMD: segments from one image, segment flow from a pair, trained by view synthesis.

Data flow of `AMDModel` for a pair (image input stops after step 1):

    frame 1, frame 2
       |          |
       |          +--> feature pyramids --+
       v                                  v
    1. appearance pathway           2. segment flow: cost volume -> motion features
       -> segment masks ------------>    -> pooled per segment -> motion -> flow
                                          |
                                          v
                                    3. view synthesis (backward warp, visibility)
                                          |
                                          v
                                    4. photometric loss
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput

from .appearance_amd import AMDAppearancePathway, AMDBottleneck
from .configuration_amd import AMDConfig
from .loss_amd import photometric_loss
from .motion_amd import AMDMotionPathway
from .segment_flow_amd import AMDReadout, AMDSegmentFlow, SegmentFlow
from .view_synthesis_amd import SynthesizedView, synthesize_views
from .warping_amd import full_precision

# Shortest side from which the stride-8 features and the dilated head are meaningful.
MIN_IMAGE_SIZE = 32


@dataclass
class AMDModelOutput(ModelOutput):
    """Segments of an image, and for a pair everything the loss is made of.

    Shapes: B pairs or images, K segments, (h, w) the input at stride 8, (Hm, Wm) the motion size.
    Frame-wise fields have a frame axis of 2 for a pair and none for an image.

    Args:
        loss: Photometric loss of the pair, a scalar in float32 or wider.
        segment_logits: Logits of the segments, (B, K, h, w) or (B, 2, K, h, w).
        segment_masks: Softmax of the logits over K, same shape, float32 or wider.
        segment_motion_12: Motion from frame 1 to frame 2 per segment in pixels, (B, K, 2).
        segment_motion_21: Motion from frame 2 to frame 1 per segment in pixels, (B, K, 2).
        segment_flow_12: Segment flow on the grid of frame 1 in pixels, (B, 2, Hm, Wm).
        segment_flow_21: Segment flow on the grid of frame 2 in pixels, (B, 2, Hm, Wm).
        synthesized_1: Frame 1 synthesized from frame 2, RGB in [0, 1], (B, 3, Hm, Wm).
        synthesized_2: Frame 2 synthesized from frame 1, RGB in [0, 1], (B, 3, Hm, Wm).
        visibility_1: 1 where frame 1 is seen in frame 2, (B, 1, Hm, Wm).
        visibility_2: 1 where frame 2 is seen in frame 1, (B, 1, Hm, Wm).
        pixel_flow_12: Unpooled flow on the grid of frame 1, (B, 2, Hm, Wm), on request.
        pixel_flow_21: Unpooled flow on the grid of frame 2, (B, 2, Hm, Wm), on request.
        flow_scales: With the pixel flow: the flow that was warped (per segment or per pixel) at
            every scale s, finest first, all flows 12 and then all flows 21 as one batch,
            (2B, 2, Hm / 2**s, Wm / 2**s) in pixels of its scale.
    """

    loss: Tensor | None = None
    segment_logits: Tensor | None = None
    segment_masks: Tensor | None = None
    segment_motion_12: Tensor | None = None
    segment_motion_21: Tensor | None = None
    segment_flow_12: Tensor | None = None
    segment_flow_21: Tensor | None = None
    synthesized_1: Tensor | None = None
    synthesized_2: Tensor | None = None
    visibility_1: Tensor | None = None
    visibility_2: Tensor | None = None
    pixel_flow_12: Tensor | None = None
    pixel_flow_21: Tensor | None = None
    flow_scales: tuple[Tensor, ...] | None = None


class AMDPreTrainedModel(PreTrainedModel):
    """Weight initialization and loading shared by the AMD models."""

    config: AMDConfig
    base_model_prefix = "amd"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["AMDBottleneck"]  # noqa: RUF012

    def _initialize_weights(self, module: nn.Module, *_: bool) -> None:
        # transformers passes over modules of custom code that hold no weights of their own, which
        # would leave out the residual blocks and the motion pathway. All initialization here skips
        # loaded tensors by itself, so nothing needs that protection.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d) and module.bias is None:
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Conv2d | nn.Linear):
            # PyTorch's default, as the published initialization of these layers never runs.
            self._init_uniform(module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            self._init_batch_norm(module)
        elif isinstance(module, AMDBottleneck) and self.config.zero_init_residual:
            init.zeros_(module.norm3.weight)
        elif (
            isinstance(module, AMDMotionPathway | AMDReadout)
            and self.config.motion_initialization == "kaiming"
        ):
            self._init_motion_kaiming(module)

    @staticmethod
    def _init_batch_norm(norm: nn.modules.batchnorm._BatchNorm) -> None:
        for name, start in (
            ("weight", init.ones_),
            ("bias", init.zeros_),
            ("running_mean", init.zeros_),
            ("running_var", init.ones_),
            ("num_batches_tracked", init.zeros_),
        ):
            start(getattr(norm, name))

    @staticmethod
    def _init_uniform(layer: nn.Conv2d | nn.Linear) -> None:
        fan_in = layer.weight[0].numel()
        bound = fan_in**-0.5
        init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            init.uniform_(layer.bias, -bound, bound)

    def _init_motion_kaiming(self, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                init.kaiming_normal_(
                    layer.weight, a=self.config.negative_slope, nonlinearity="leaky_relu"
                )
                if layer.bias is not None:
                    init.zeros_(layer.bias)
        if isinstance(module, AMDReadout):
            init.normal_(module.output.weight, std=0.01)


def _check_pixel_values(pixel_values: Tensor, allow_pair: bool) -> None:
    shapes = "(B, 3, H, W) or (B, 2, 3, H, W)" if allow_pair else "(B, 3, H, W)"
    pair = pixel_values.dim() == 5 and allow_pair
    if not (pixel_values.dim() == 4 or pair) or pixel_values.shape[-3] != 3:
        raise ValueError(
            f"`pixel_values` must have shape {shapes}, got {tuple(pixel_values.shape)}; "
            "pass RGB images prepared by AMDImageProcessor."
        )
    if pair and pixel_values.shape[1] != 2:
        raise ValueError(
            f"`pixel_values` of a pair must have shape (B, 2, 3, H, W), "
            f"got {pixel_values.shape[1]} frames; pass two frames in temporal order."
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"`pixel_values` must be floating point, got {pixel_values.dtype}; "
            "normalize the images with AMDImageProcessor."
        )
    if min(pixel_values.shape[-2:]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"`pixel_values` must be at least {MIN_IMAGE_SIZE} pixels high and wide, "
            f"got {tuple(pixel_values.shape[-2:])}; enlarge the images."
        )


class AMDModel(AMDPreTrainedModel):
    """Appearance-Motion Decomposition: image -> segments; pair -> segments, motion and loss.

    Source: "The Emergence of Objectness: Learning Zero-Shot Segmentation from Videos", NeurIPS
    2021. Where the released code differs, see the comments at the lines and `docs/method.md`.
    """

    def __init__(self, config: AMDConfig) -> None:
        super().__init__(config)
        self.appearance = AMDAppearancePathway(config)
        self.segment_classifier = nn.Conv2d(self.appearance.out_channels, config.num_segments, 1)
        self.segment_flow = AMDSegmentFlow(config)
        self.post_init()

    def segment_images(self, images: Tensor) -> Tensor:
        """Maps normalized images (B, 3, H, W) to segment logits (B, K, ceil(H/8), ceil(W/8))."""
        # Features are channels-last inside; users may call `view` on what comes out.
        return self.segment_classifier(self.appearance(images)).contiguous()

    def frames_in_rgb(self, pixel_values: Tensor) -> Tensor:
        """Undoes the normalization: (B, 3, H, W) -> RGB in [0, 1] at the motion size."""
        pixel_values = full_precision(pixel_values)
        mean = pixel_values.new_tensor(self.config.image_mean).view(1, 3, 1, 1)
        std = pixel_values.new_tensor(self.config.image_std).view(1, 3, 1, 1)
        frames = (pixel_values * std + mean) / 255.0
        height, width = self.config.motion_size
        # Every pair is stretched to one size whatever its aspect ratio, as in the published code.
        return F.interpolate(frames, size=(height, width), mode="bilinear", align_corners=True)

    def estimate_flow(
        self, frames: Tensor, masks: Tensor | None, output_pixel_flow: bool = False
    ) -> SegmentFlow:
        """Estimates the flow of both directions as one batch.

        Args:
            frames: RGB frames in [0, 1] at the motion size, (2B, 3, Hm, Wm): all first frames, then
                all second frames.
            masks: Segment masks in the same order, (2B, K, h, w); `None` for one vector per pixel.
            output_pixel_flow: Also return the unpooled flow.

        Returns:
            Flow on the grid of frame 1 (first B entries) and of frame 2 (last B entries).
        """
        B = frames.shape[0] // 2
        pyramid = self.segment_flow.motion_pathway.pyramid(frames.to(self._motion_dtype()))
        levels = pyramid[: self.config.num_motion_levels]
        others = [features.roll(B, dims=0) for features in levels]
        # Masks of the source frame of the synthesis (frame 2 for the flow on frame 1's grid), as in
        # the paper; looks swapped in the published code.
        source_masks = None if masks is None else masks.roll(B, dims=0)
        return self.segment_flow(levels, others, source_masks, output_pixel_flow)

    def _motion_dtype(self) -> torch.dtype:
        return next(self.segment_flow.parameters()).dtype

    def forward(
        self,
        pixel_values: Tensor,
        return_loss: bool = True,
        output_pixel_flow: bool = False,
        pixel_flow_only: bool = False,
        return_dict: bool | None = None,
    ) -> AMDModelOutput | tuple[Tensor, ...]:
        """Segments images, or segments a pair and explains one frame by the other.

        Args:
            pixel_values: Normalized images (B, 3, H, W), or pairs in temporal order
                (B, 2, 3, H, W); at least 32 pixels high and wide.
            return_loss: Also synthesize the frames and return the loss of a pair.
            output_pixel_flow: Also return the unpooled (pixel) flow of a pair.
            pixel_flow_only: Motion warm-up: estimate, warp and score the pixel flow of a pair in
                place of the segment flow; the appearance pathway does not run.
            return_dict: `False` returns a plain tuple of the fields that are set.

        Returns:
            `AMDModelOutput`.

        Raises:
            ValueError: If the shape of `pixel_values` is not one of the two above.
            TypeError: If `pixel_values` is not floating point.
        """
        _check_pixel_values(pixel_values, allow_pair=True)
        use_dict = return_dict if return_dict is not None else self.config.return_dict
        if pixel_values.dim() == 4:
            logits = self.segment_images(pixel_values)
            output = AMDModelOutput(
                segment_logits=logits, segment_masks=full_precision(logits).softmax(dim=1)
            )
        else:
            output = self._forward_pair(
                pixel_values, return_loss, output_pixel_flow, pixel_flow_only
            )
            # In the order of the fields, so that the tuple starts with the loss.
            output = AMDModelOutput(**output)
        return output if use_dict else output.to_tuple()

    def _forward_pair(
        self,
        pixel_values: Tensor,
        return_loss: bool,
        output_pixel_flow: bool,
        pixel_flow_only: bool,
    ) -> AMDModelOutput:
        B = pixel_values.shape[0]
        output = AMDModelOutput()
        # 1. Appearance pathway: both frames of all pairs are one batch (b0f1, b0f2, b1f1, ...).
        masks = None
        if not pixel_flow_only:
            logits = self.segment_images(pixel_values.flatten(0, 1))
            output.segment_logits = logits.unflatten(0, (B, 2))
            output.segment_masks = full_precision(output.segment_logits).softmax(dim=2)
            masks = output.segment_masks.transpose(0, 1).flatten(0, 1)  # (2B, K, h, w)
        # 2. Motion pathway and segment flow, both directions as one batch.
        frames = self.frames_in_rgb(pixel_values.transpose(0, 1).flatten(0, 1))  # (2B, 3, Hm, Wm)
        flow = self.estimate_flow(frames, masks, output_pixel_flow)
        if flow.segment_motion is not None:
            output.segment_motion_12, output.segment_motion_21 = flow.segment_motion.split(B)
            output.segment_flow_12, output.segment_flow_21 = flow.flows[0].split(B)
        if flow.pixel_flow is not None:
            output.pixel_flow_12, output.pixel_flow_21 = flow.pixel_flow.split(B)
            output.flow_scales = tuple(flow.flows)
        if not return_loss:
            return output
        # 3. View synthesis: frame 1 is sampled from frame 2 and the other way round.
        with torch.autocast(frames.device.type, enabled=False):
            views = synthesize_views(
                frames,
                frames.roll(B, dims=0),
                flow.flows,
                flow.flows[0].roll(B, dims=0),
                list(self.config.scale_weights),
                self.config.visibility_threshold,
            )
            # 4. Photometric loss, the only training signal. The smoothness term of the published
            # code never reaches its total and is not computed here.
            output.loss = self._loss(views, B)
        finest = views[0]
        if finest is not None:
            output.synthesized_1, output.synthesized_2 = finest.synthesized.split(B)
            output.visibility_1, output.visibility_2 = finest.visibility.split(B)
        return output

    def _loss(self, views: list[SynthesizedView | None], B: int) -> Tensor:
        terms = []
        for view, weight in zip(views, self.config.scale_weights, strict=True):
            if view is None or not weight:
                continue
            for i in (slice(None, B), slice(B, None)):
                photometric = photometric_loss(
                    view.image[i],
                    view.synthesized[i],
                    view.visibility[i],
                    self.config.l1_weight,
                    self.config.ssim_weight,
                )
                # Both directions, averaged, as in the published code; the paper writes one.
                terms.append(0.5 * weight * photometric)
        return torch.stack(terms).sum()


class AMDForSemanticSegmentation(AMDPreTrainedModel):
    """The appearance pathway with a new classifier over classes, for supervised fine-tuning.

    Loads from an `AMDModel` checkpoint with only `classifier` newly initialized.

    Source: AMD paper, Sec. 4 (semantic segmentation on VOC2012); released code: absent.
    """

    # Of an AMDModel checkpoint, the segments' classifier and the motion pathway are not used.
    _keys_to_ignore_on_load_unexpected = [r"^segment_classifier\.", r"^segment_flow\."]  # noqa: RUF012

    def __init__(self, config: AMDConfig) -> None:
        super().__init__(config)
        self.appearance = AMDAppearancePathway(config)
        self.classifier = nn.Conv2d(self.appearance.out_channels, config.num_labels or 2, 1)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Scores every class at stride 8.

        Args:
            pixel_values: Normalized images (B, 3, H, W), at least 32 pixels high and wide.
            labels: Class index per pixel, (B, H', W') int64, 255 = ignored; the logits are resized
                to it for the loss.
            return_dict: `False` returns a plain tuple of the fields that are set.

        Returns:
            `SemanticSegmenterOutput` with `logits` (B, num_labels, ceil(H/8), ceil(W/8)) and, with
            labels, the cross-entropy `loss`; 0 where every pixel is ignored.

        Raises:
            ValueError: If a shape is not one of those above.
            TypeError: If `pixel_values` is not floating point.
        """
        _check_pixel_values(pixel_values, allow_pair=False)
        use_dict = return_dict if return_dict is not None else self.config.return_dict
        logits = self.classifier(self.appearance(pixel_values)).contiguous()
        loss = None if labels is None else self._loss(logits, labels)
        output = SemanticSegmenterOutput(loss=loss, logits=logits)
        return output if use_dict else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        is_wrong = labels.dim() != 3 or labels.shape[0] != logits.shape[0]
        if is_wrong or labels.is_floating_point():
            raise ValueError(
                f"`labels` must have shape ({logits.shape[0]}, H, W) and hold integers, got "
                f"{tuple(labels.shape)} of {labels.dtype}; pass one class index per pixel."
            )
        scores = F.interpolate(
            full_precision(logits), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        total = F.cross_entropy(scores, labels, ignore_index=255, reduction="sum")
        return total / (labels != 255).sum().clamp(min=1)


__all__ = [
    "AMDForSemanticSegmentation",
    "AMDModel",
    "AMDModelOutput",
    "AMDPreTrainedModel",
]
