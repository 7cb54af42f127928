"""Pictures of masks, segments and flow, in one palette for every figure of the package."""

from amd_hf.visualization.contact_sheet import contact_sheet
from amd_hf.visualization.flow_colors import (
    MIN_MOTION_SCALE,
    flow_to_rgb,
    relative_motion_to_rgb,
)
from amd_hf.visualization.overlays import (
    most_likely,
    overlay_object,
    overlay_segments,
    soft_mask_to_rgb,
)
from amd_hf.visualization.palette import OBJECT_COLOR, SEGMENT_COLORS, segment_colors

__all__ = [
    "MIN_MOTION_SCALE",
    "OBJECT_COLOR",
    "SEGMENT_COLORS",
    "contact_sheet",
    "flow_to_rgb",
    "most_likely",
    "overlay_object",
    "overlay_segments",
    "relative_motion_to_rgb",
    "segment_colors",
    "soft_mask_to_rgb",
]
