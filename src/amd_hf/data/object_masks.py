"""Object masks that lie beside the frames of tar shards, cut like the crops of the pairs.

A shard of `scripts/make_pseudo_masks.py` holds, beside `<key>.f0.jpg`, ..., members
`<key>.m0.png`, ...: 8-bit gray levels of the size of the frame, 255 times the probability that a
pixel shows the object. Frames without a plausible object have no mask.
"""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from amd_hf.data.archives import read_tar_member, tar_members
from amd_hf.data.augmentation import PairAugmentation
from amd_hf.image_io_amd import open_image

MASK_SUFFIX = re.compile(r"^m(\d+)\.png$")


def mask_member_name(key: str, frame: int) -> str:
    """Returns the name of the mask of a frame in a shard."""
    return f"{key}.m{frame}.png"


class ObjectMasks:
    """The masks of a folder of shards, found by clip and frame.

    Args:
        folder: Folder of `*.tar` shards with mask members.

    Raises:
        ValueError: If the folder holds no mask, or two shards hold masks of the same clip.
    """

    def __init__(self, folder: str | Path) -> None:
        self.paths = sorted(Path(folder).glob("*.tar"))
        self._place: dict[tuple[str, int], int] = {}
        self._shard = array("i")
        self._offset = array("q")
        self._size = array("q")
        for number, path in enumerate(self.paths):
            for member in tar_members(path):
                key, _, suffix = PurePosixPath(member.name).name.partition(".")
                match = MASK_SUFFIX.match(suffix)
                if match is not None:
                    self._check_is_new(key, int(match[1]), number)
                    self._place[key, int(match[1])] = len(self._offset)
                    self._shard.append(number)
                    self._offset.append(member.offset)
                    self._size.append(member.size)
        if not self._place:
            raise ValueError(
                f"`dataset` {str(folder)!r} holds no object masks (members <key>.m0.png); make "
                "them with scripts/make_pseudo_masks.py."
            )

    def _check_is_new(self, key: str, frame: int, number: int) -> None:
        """Refuses a second mask in another shard: which of the clips it shows cannot be known."""
        other = self._place.get((key, frame))
        if other is not None and self._shard[other] != number:
            names = f"{self.paths[self._shard[other]].name} and {self.paths[number].name}"
            raise ValueError(
                f"`dataset` has masks of clip {key!r} in two shards, {names}; make those of one of "
                "the two sets with scripts/make_pseudo_masks.py --key_prefix."
            )

    def __len__(self) -> int:
        return len(self._place)

    def mask(self, key: str, frame: int) -> Tensor | None:
        """Returns the mask of a frame, uint8 of shape (H, W) in 0..255; None where it has none."""
        place = self._place.get((key, frame))
        if place is None:
            return None
        path = self.paths[self._shard[place]]
        data = read_tar_member(path, self._offset[place], self._size[place])
        with open_image(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("L")))

    def crops(
        self, pair_keys: Sequence[str], seeds: Sequence[int], augmentation: PairAugmentation
    ) -> dict[str, Tensor]:
        """Returns the masks of a batch of pairs, cut as `augmentation` cut the frames.

        Args:
            pair_keys: Keys of the pairs as `frame_pairs` gives them, `<clip>/<first>-<second>`.
            seeds: The seeds of their augmentation.
            augmentation: The augmentation of the stream.

        Returns:
            `object_masks` of shape (B, 2, h, w), float32 in [0, 1] (zero where there is none), and
            `has_object_mask`, bool of shape (B, 2).
        """
        height, width = augmentation.crop_size
        masks = torch.zeros(len(pair_keys), 2, height, width)
        found = torch.zeros(len(pair_keys), 2, dtype=torch.bool)
        for row, (pair_key, seed) in enumerate(zip(pair_keys, seeds, strict=True)):
            key, _, frames = pair_key.rpartition("/")
            for column, frame in enumerate(frames.split("-")):
                mask = self.mask(PurePosixPath(key).name, int(frame))
                if mask is None:
                    continue
                geometry = augmentation.draw_geometry(mask.shape[0], mask.shape[1], int(seed))
                crop = augmentation.apply_geometry(mask.unsqueeze(0), geometry)
                masks[row, column] = crop.squeeze(0) / 255.0
                found[row, column] = True
        return {"object_masks": masks, "has_object_mask": found}


__all__ = ["MASK_SUFFIX", "ObjectMasks", "mask_member_name"]
