"""Appearance pathway: one image -> dense features -> segment logits.

A ResNet of output stride 8 followed by dilated 3x3 convolutions. Only the last stage is dilated,
as in the published code (strides 1, 2, 1, 1; dilations 1, 1, 1, 2), which is not the usual
dilated ResNet.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .configuration_amd import AMDConfig
from .warping_amd import channels_last

# Inference on a CPU takes a batch in parts of so many pixels: beyond, the system hands out memory
# anew for every layer, and each of 8 images of 392x697 takes 1.4 times as long as one alone.
PIXELS_AT_ONCE = 2**19


@contextmanager
def frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Keeps the running statistics of `module` unchanged while it runs in training mode.

    The output is the same as with updates: the statistics of the batch are used.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # The statistics stay in the graph: recomputation must save the tensors that forward saved.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches


class AMDBottleneck(nn.Module):
    """Residual block: 1x1, 3x3 (stride and dilation), 1x1, each with batch normalization."""

    gradient_checkpointing = False

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to (B, C', H / stride, W / stride)."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # Recomputation must not update the running statistics a second time.
            return checkpoint(
                self._residual,
                x,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), frozen_batch_statistics(self)),
            )
        return self._residual(x)

    def _residual(self, x: Tensor) -> Tensor:
        out = self.activation(self.norm1(self.conv1(x)))
        out = self.activation(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        return self.activation(out + self.shortcut(x))


class AMDBackbone(nn.Module):
    """ResNet of output stride 8 with all stage outputs available."""

    def __init__(self, config: AMDConfig) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(
            config.num_channels, config.stem_channels, 7, stride=2, padding=3, bias=False
        )
        self.stem_norm = nn.BatchNorm2d(config.stem_channels)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        channels = config.stem_channels
        for index, count in enumerate(config.block_counts):
            width = config.base_channels * 2**index
            out_channels = width * config.bottleneck_expansion
            dilation = config.block_dilations[index]
            blocks = []
            for block in range(count):
                stride = config.block_strides[index] if block == 0 else 1
                blocks.append(AMDBottleneck(channels, width, out_channels, stride, dilation))
                channels = out_channels
            if index == 0 and blocks and isinstance(blocks[0].shortcut, nn.Identity):
                # The published ResNet projects the first shortcut even where the shapes agree.
                blocks[0].shortcut = nn.Sequential(
                    nn.Conv2d(out_channels, out_channels, 1, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
            self.stages.append(nn.Sequential(*blocks))
        self.out_channels = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps normalized images (B, 3, H, W) to one feature map per stage."""
        x = self.pool(self.activation(self.stem_norm(self.stem_conv(images))))
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class AMDHeadBlock(nn.Module):
    """Dilated 3x3 convolution with batch normalization and a rectifier."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to (B, C', H, W)."""
        return self.activation(self.norm(self.conv(x)))


class AMDAppearancePathway(nn.Module):
    """Image -> features at stride 8, ready for a 1x1 classifier over segments or classes."""

    def __init__(self, config: AMDConfig) -> None:
        super().__init__()
        self.backbone = AMDBackbone(config)
        channels = self.backbone.out_channels
        self.head = nn.Sequential()
        for _ in range(config.num_head_convs):
            self.head.append(AMDHeadBlock(channels, config.head_channels, config.head_dilation))
            channels = config.head_channels
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.out_channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalized images (B, 3, H, W) to features (B, C, ceil(H / 8), ceil(W / 8)).

        Source: AMD paper, Sec. 3 ("segmentation network"); released code: no difference.
        """
        count = max(PIXELS_AT_ONCE // (images.shape[-2] * images.shape[-1]), 1)
        # A compiled or exported graph holds no loop over images.
        is_plain = images.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_plain and not self.training and not torch.is_grad_enabled() and len(images) > count:
            return torch.cat([self._features(part) for part in images.split(count)])
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        features = self.backbone(channels_last(images))[-1]
        return self.dropout(self.head(features))


__all__ = [
    "AMDAppearancePathway",
    "AMDBackbone",
    "AMDBottleneck",
    "AMDHeadBlock",
    "frozen_batch_statistics",
]
