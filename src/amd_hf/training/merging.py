"""Joins the two pathways of separately trained models of one configuration."""

from __future__ import annotations

from amd_hf.modeling_amd import AMDModel

# What makes segments of an image; everything else belongs to the motion pathway.
APPEARANCE_PREFIXES = ("appearance.", "segment_classifier.")


def merge_pathways(appearance: AMDModel, motion: AMDModel) -> AMDModel:
    """Returns `appearance` with the motion pathway of `motion`.

    The stages that train one pathway alone leave the other one as it is, so both can run at the
    same time, on different machines.

    Args:
        appearance: Model whose segments are kept, with its configuration; changed in place.
        motion: Model whose motion pathway and read-out are taken.

    Raises:
        ValueError: If the shapes of the motion pathways differ.
    """
    taken = {
        name: value
        for name, value in motion.state_dict().items()
        if not name.startswith(APPEARANCE_PREFIXES)
    }
    own = appearance.state_dict()
    wrong = [
        name for name, value in taken.items() if name not in own or own[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"`motion` must have the configuration of `appearance`; {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}."
        )
    appearance.load_state_dict({**own, **taken})
    return appearance


__all__ = ["APPEARANCE_PREFIXES", "merge_pathways"]
