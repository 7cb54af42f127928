r"""MoCo v2 for the backbone of the appearance pathway: the contrastive comparator of AMD.

    view 1 -> backbone -> projection -> query   \
                                                 InfoNCE: the key of the same image against
    view 2 -> key backbone -> projection -> key /  the keys of `queue_size` earlier images

The key network follows the query network as a moving average. Both views come from one frame.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amd_hf.configuration_amd import AMDConfig
from amd_hf.training.backbone_start import new_backbone, save_backbone


def info_nce(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrastive loss of queries against their own keys and the keys of other images.

    Args:
        query: Unit vectors of shape (B, D).
        key: Unit vectors of shape (B, D), without gradient.
        queue: Unit vectors of other images, of shape (D, Q).
        temperature: Positive number that the similarities are divided by.

    Returns:
        The mean cross-entropy, a scalar, and the share of queries that are nearer to their key than
        to the whole queue, in [0, 1].

    Source: MoCo (He et al. 2020), Eq. 1.
    """
    positive = (query * key).sum(dim=1, keepdim=True)  # (B, 1)
    logits = torch.cat([positive, query @ queue], dim=1) / temperature  # (B, 1 + Q)
    target = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    accuracy = (logits.detach().argmax(dim=1) == target).float().mean()
    return F.cross_entropy(logits, target), accuracy


class MomentumContrast(nn.Module):
    """A backbone, its slow copy, their projections, and the queue of keys.

    Args:
        config: Configuration of the appearance pathway.
        dimension: Length D of the compared vectors.
        queue_size: Number Q of keys that are remembered.
        momentum: Share of the key network that every step keeps, in [0, 1).
        temperature: Temperature of the contrastive loss.
        num_key_groups: Groups into which the keys of a batch are shuffled for batch normalization,
            so that batch statistics do not tell which query a key belongs to. It stands in for the
            shuffling over devices of the published code and works on one device too.

    Raises:
        ValueError: If a number is out of range.

    Source: MoCo v2 (Chen et al. 2020): MLP projection, temperature 0.2, queue of 65536 keys, key
        momentum 0.999.
    """

    queue: Tensor
    queue_position: Tensor

    def __init__(
        self,
        config: AMDConfig,
        *,
        dimension: int = 128,
        queue_size: int = 65_536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        num_key_groups: int = 4,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1 or temperature <= 0:
            raise ValueError(
                f"`momentum` must lie in [0, 1) and `temperature` be positive, got {momentum} and "
                f"{temperature}."
            )
        self.config = config
        self.momentum, self.temperature = momentum, temperature
        self.num_key_groups = num_key_groups
        self.backbone = new_backbone(config)
        channels = self.backbone.out_channels
        self.projection = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, dimension)
        )
        self.key_backbone = deepcopy(self.backbone).requires_grad_(False)
        self.key_projection = deepcopy(self.projection).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dimension, queue_size), dim=0))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.int64))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch of two views; in train mode the key network and the queue move on.

        Args:
            pixel_values: Normalized views of shape (B, 2, 3, H, W).

        Returns:
            The loss and the accuracy of `info_nce`.

        Raises:
            ValueError: If the batch is larger than the queue.
        """
        query_view, key_view = pixel_values.unbind(dim=1)
        query = self._embed(self.backbone, self.projection, query_view)
        with torch.no_grad():
            if self.training:
                self._follow()
            key = self._keys(key_view)
        loss, accuracy = info_nce(query, key, self.queue.clone(), self.temperature)
        if self.training:
            self._enqueue(gather(key))
        return loss, accuracy

    @staticmethod
    def _embed(backbone: nn.Module, projection: nn.Module, images: Tensor) -> Tensor:
        """Unit vectors (B, D) in float32 of images (B, 3, H, W)."""
        features = backbone(images)[-1].mean(dim=(2, 3))
        return F.normalize(projection(features).float(), dim=1)

    def _keys(self, images: Tensor) -> Tensor:
        """Keys (B, D), computed in shuffled groups."""
        B = len(images)
        order = torch.randperm(B, device=images.device)
        # At least two images a group: batch statistics of one say nothing.
        groups = order.chunk(max(min(self.num_key_groups, B // 2), 1))
        keys = torch.cat(
            [self._embed(self.key_backbone, self.key_projection, images[g]) for g in groups]
        )
        return keys[torch.argsort(order)]

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in (
            (self.key_backbone, self.backbone),
            (self.key_projection, self.projection),
        ):
            for target, source in zip(slow.parameters(), fast.parameters(), strict=True):
                target.lerp_(source.detach(), 1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        size = self.queue.shape[1]
        if len(keys) > size:
            raise ValueError(
                f"`queue_size` must be at least the batch of all processes ({len(keys)}), got "
                f"{size}."
            )
        places = (self.queue_position + torch.arange(len(keys), device=keys.device)) % size
        self.queue[:, places] = keys.T.to(self.queue.dtype)
        self.queue_position.copy_((self.queue_position + len(keys)) % size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the query backbone as a start for fine-tuning."""
        save_backbone(self.backbone, self.config, folder)


def gather(keys: Tensor) -> Tensor:
    """The keys (B, D) of all processes in the order of their ranks, (N * B, D); the same in all."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return keys
    parts = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, keys.contiguous())
    return torch.cat(parts)
