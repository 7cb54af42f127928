"""Pixel grids, backward warp, forward splat and resizing of flow.

Convention everywhere in the package: a flow of shape (B, 2, H, W) holds channel 0 = u (right +) and
channel 1 = v (down +) in pixels of its own resolution; sampling uses align_corners=True and border
padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_flow(flow: Tensor) -> None:
    if flow.dim() != 4 or flow.shape[1] != 2:
        raise ValueError(
            f"`flow` must have shape (B, 2, H, W), got {tuple(flow.shape)}; "
            "pass pixel offsets (u, v)."
        )


def full_precision(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float32 if it is narrower, unchanged otherwise (float64 stays)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def channels_last(tensor: Tensor) -> Tensor:
    """Returns `tensor` (B, C, H, W) in the memory format in which convolutions are fastest."""
    if tensor.device.type == "mps":  # older Metal kernels fail on this format in the backward pass
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Returns the pixel coordinates (x, y) of a map, shape (1, 2, height, width).

    Args:
        height: Number of rows.
        width: Number of columns.
        like: Tensor whose device and dtype the grid takes.
    """
    y = torch.arange(height, device=like.device, dtype=like.dtype)
    x = torch.arange(width, device=like.device, dtype=like.dtype)
    return torch.stack(
        [x.view(1, -1).expand(height, width), y.view(-1, 1).expand(height, width)]
    ).unsqueeze(0)


def backward_warp(image: Tensor, flow: Tensor) -> Tensor:
    """Samples `image` where `flow` points, so the result lives on the grid of `flow`.

    Convention: pixel units, u right / v down, align_corners=True, border padding. Coordinates are
    never computed below float32.

    Args:
        image: Source view of shape (B, C, H, W), any range.
        flow: Offsets of shape (B, 2, H, W) in pixels of this resolution.

    Returns:
        Warped view of shape (B, C, H, W) in the dtype of `image`; equals `image` for zero flow, and
        is not-a-number where `flow` is.

    Raises:
        ValueError: If the shapes of `image` and `flow` do not match.

    Source: AMD paper, Sec. 3 (synthesis of frame j from frame i); released code: no difference.
    """
    B, _, H, W = image.shape
    if flow.shape != (B, 2, H, W):
        raise ValueError(
            f"`flow` must have shape {(B, 2, H, W)} to match `image`, got {tuple(flow.shape)}; "
            "pass pixel offsets (u, v)."
        )
    flow = full_precision(flow)
    target = pixel_grid(H, W, flow) + flow
    scale = target.new_tensor([max(W - 1, 1), max(H - 1, 1)]).view(1, 2, 1, 1)
    # Not-a-number would crash the process in the backward pass of grid_sample on CPU; it is put
    # back into the result, so that a diverged motion shows in the loss.
    undefined = target.isnan().any(dim=1, keepdim=True)
    grid = (2.0 * target / scale - 1.0).permute(0, 2, 3, 1).nan_to_num(nan=0.0)  # (B, H, W, 2)
    padding_mode = "border"
    if grid.device.type == "mps":
        # Border padding is missing in older Metal kernels; clamping the coordinates is the same.
        grid, padding_mode = grid.clamp(-1.0, 1.0), "zeros"
    warped = F.grid_sample(
        image.to(grid.dtype), grid, mode="bilinear", padding_mode=padding_mode, align_corners=True
    )
    return warped.masked_fill(undefined, float("nan")).to(image.dtype)


def forward_splat(flow: Tensor) -> Tensor:
    """Counts, with bilinear weights, how much of the source lands on every target pixel.

    Corners that fall outside of the map contribute nothing. Computed in float32 and without a
    gradient.

    Args:
        flow: Offsets of shape (B, 2, H, W) from the source pixels, in pixels.

    Returns:
        Splat map of shape (B, 1, H, W), float32, clamped to [0, 1]; ones for zero flow.

    Raises:
        ValueError: If `flow` is not of shape (B, 2, H, W).

    Source: range map of the released code (from unsupervised flow, Wang et al. 2018).
    """
    _check_flow(flow)
    flow = flow.detach().float()
    B, _, H, W = flow.shape
    target = (pixel_grid(H, W, flow) + flow).flatten(2)  # (B, 2, N)
    corner = target.floor()
    fraction = target - corner
    splat = flow.new_zeros(B, H * W)
    for dy in (0, 1):
        for dx in (0, 1):
            x = corner[:, 0] + dx
            y = corner[:, 1] + dy
            weight_x = fraction[:, 0] if dx else 1.0 - fraction[:, 0]
            weight_y = fraction[:, 1] if dy else 1.0 - fraction[:, 1]
            inside = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
            weight = torch.where(inside, weight_x * weight_y, 0.0)
            index = torch.where(inside, y * W + x, 0.0).long()
            splat.scatter_add_(1, index, weight)
    return splat.clamp(0.0, 1.0).view(B, 1, H, W)


def visibility_from_flow(flow: Tensor, threshold: float = 0.2) -> Tensor:
    """Returns which pixels of the target grid are seen in the source (1 = visible).

    Frame 1 is synthesized from frame 2, so its visibility comes from the flow that leaves frame 2.

    Args:
        flow: Flow of the opposite direction, shape (B, 2, H, W) in pixels.
        threshold: Splat value from which a pixel counts as visible.

    Returns:
        Visibility of shape (B, 1, H, W), float32, 0 or 1, without a gradient.

    Raises:
        ValueError: If `flow` is not of shape (B, 2, H, W).

    Source: released code (threshold 0.2).
    """
    return (forward_splat(flow) >= threshold).float()


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a flow and rescales its vectors to pixels of the new resolution.

    Args:
        flow: Flow of shape (B, 2, H, W) in pixels.
        size: New (height, width).

    Returns:
        Flow of shape (B, 2, *size) in pixels of that size.

    Raises:
        ValueError: If `flow` is not of shape (B, 2, H, W).
    """
    _check_flow(flow)
    H, W = flow.shape[-2:]
    resized = F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
    scale = resized.new_tensor([size[1] / W, size[0] / H]).view(1, 2, 1, 1)
    return resized * scale


__all__ = [
    "backward_warp",
    "channels_last",
    "forward_splat",
    "full_precision",
    "pixel_grid",
    "resize_flow",
    "visibility_from_flow",
]
