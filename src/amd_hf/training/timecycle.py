r"""TimeCycle for the backbone of the appearance pathway: the tracking comparator of AMD.

    frame 2: patch ---- affinity ----> frame 1: patch ---- affinity ----> frame 2: patch
       |                                  |                                  |
    position drawn                   position found                     position found
       '------------------------ cycle: the two are the same -----------------'

The tracker has no labels: a patch that is tracked into the other frame and back must end where it
began, and what it finds must look like what it sought.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amd_hf.configuration_amd import AMDConfig
from amd_hf.training.backbone_start import new_backbone, save_backbone

# Side of a patch relative to the frame, as published (80 of 240 pixels).
PATCH_SHARE = 1.0 / 3.0
MAX_ROTATION = 0.5  # of the patch that is found, in radians
LOCALIZER_CHANNELS = 32


def patch_grid(position: Tensor, size: tuple[int, int], share: float = PATCH_SHARE) -> Tensor:
    """Where the samples of a patch lie in its frame.

    Convention: align_corners=False, x right and y down, the frame spans -1..1.

    Args:
        position: Center x, center y and rotation in radians, shape (B, 3).
        size: Height and width of the patch in samples.
        share: Side of the patch relative to the frame.

    Returns:
        Points (x, y) of shape (B, h, w, 2).
    """
    x, y, angle = position.float().unbind(dim=1)
    cos, sin = share * angle.cos(), share * angle.sin()
    rows = [torch.stack([cos, -sin, x], dim=1), torch.stack([sin, cos, y], dim=1)]
    return F.affine_grid(
        torch.stack(rows, dim=1), [len(position), 1, *size], align_corners=False
    )  # (B, h, w, 2)


class Localizer(nn.Module):
    """Finds a patch in a frame from the affinity of all their features.

    Args:
        patch_size: Height and width of the patch's features.
        frame_size: Height and width of the frame's features.
        temperature: Divides the cosine similarities.

    Source: TimeCycle (Wang et al. 2019), Sec. 3.3; released code: two convolutions and a linear
        layer likewise, wider; its position is not bounded.
    """

    def __init__(
        self, patch_size: tuple[int, int], frame_size: tuple[int, int], temperature: float
    ) -> None:
        super().__init__()
        self.temperature = temperature
        channels = LOCALIZER_CHANNELS
        self.layers = nn.Sequential(
            nn.Conv2d(patch_size[0] * patch_size[1], channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(channels * frame_size[0] * frame_size[1], 3),
        )

    def forward(self, patch: Tensor, frame: Tensor) -> Tensor:
        """Maps unit features (B, C, h, w) and (B, C, H, W) to positions (B, 3) inside the frame."""
        similarity = torch.einsum("bcij,bchw->bijhw", patch, frame) / self.temperature
        B, i, j, H, W = similarity.shape
        affinity = similarity.view(B, i * j, H * W).softmax(dim=2) * (H * W)  # mean 1
        x, y, angle = self.layers(affinity.view(B, i * j, H, W)).float().tanh().unbind(dim=1)
        reach = 1.0 - PATCH_SHARE
        return torch.stack([reach * x, reach * y, MAX_ROTATION * angle], dim=1)


class TimeCycle(nn.Module):
    """A backbone, and a tracker on top of it that is thrown away after pre-training.

    Args:
        config: Configuration of the appearance pathway.
        crop_size: Height and width of the frames in pixels.
        temperature: Divides the cosine similarities of the affinity.
        alignment_weight: Weight of the cycle beside the similarity of the tracked patch.

    Raises:
        ValueError: If a number is out of range.

    Source: TimeCycle (Wang et al. 2019), with cycles of one step, since a sample is a pair: the
        long and the skip cycle are the same then.
    """

    def __init__(
        self,
        config: AMDConfig,
        crop_size: tuple[int, int],
        *,
        temperature: float = 512**-0.5,
        alignment_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if temperature <= 0 or alignment_weight < 0:
            raise ValueError(
                f"`temperature` must be positive and `alignment_weight` not negative, got "
                f"{temperature} and {alignment_weight}."
            )
        self.config = config
        self.alignment_weight = alignment_weight
        self.backbone = new_backbone(config)
        stride = config.output_stride
        height, width = (-(-side // stride) for side in crop_size)
        self.patch_size = (max(height // 3, 1), max(width // 3, 1))
        self.localizer = Localizer(self.patch_size, (height, width), temperature)

    def features(self, images: Tensor) -> Tensor:
        """Unit features (B, C, H / 8, W / 8) of normalized images (B, 3, H, W)."""
        return F.normalize(self.backbone(images)[-1].float(), dim=1)

    def draw_positions(self, count: int, device: torch.device) -> Tensor:
        """Random upright patches inside of the frame, (B, 3)."""
        position = torch.zeros(count, 3, device=device)
        position[:, :2].uniform_(PATCH_SHARE - 1.0, 1.0 - PATCH_SHARE)
        return position

    def track(self, patch: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Finds a patch in a frame: its position (B, 3) and the features there (B, C, h, w)."""
        position = self.localizer(patch, frame)
        grid = patch_grid(position, self.patch_size)
        return position, F.grid_sample(frame, grid, align_corners=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a batch of pairs.

        Args:
            pixel_values: Normalized pairs of shape (B, 2, 3, H, W).

        Returns:
            The loss; the squared distance between begin and end of the cycle, with the frame
            spanning -1..1; and the mean cosine similarity of a patch and what it found.
        """
        B = len(pixel_values)
        position = self.draw_positions(B, pixel_values.device)
        frames = self.features(pixel_values.flatten(0, 1)).unflatten(0, (B, 2))
        # The patch is seen on its own, so that its surroundings cannot tell where it lies.
        pixels = tuple(side * self.config.output_stride for side in self.patch_size)
        cut = patch_grid(position, (pixels[0], pixels[1]))
        patch = self.features(F.grid_sample(pixel_values[:, 1], cut, align_corners=False))
        _, found = self.track(patch, frames[:, 0])
        returned, _ = self.track(F.normalize(found, dim=1), frames[:, 1])
        similarity = (patch * found).sum(dim=1).mean()
        distance = alignment(position, returned, self.patch_size)
        return self.alignment_weight * distance - similarity, distance, similarity

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the backbone as a start for fine-tuning; the tracker is left behind."""
        save_backbone(self.backbone, self.config, folder)


def alignment(first: Tensor, second: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean squared distance between the samples of two patches.

    Args:
        first: Positions of shape (B, 3), as in `patch_grid`.
        second: Positions of shape (B, 3).
        size: Height and width of the patches in samples.

    Source: TimeCycle (Wang et al. 2019), Eq. 5.
    """
    distance = patch_grid(first, size) - patch_grid(second, size)
    return distance.square().sum(dim=-1).mean()
