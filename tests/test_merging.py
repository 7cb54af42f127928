"""Joining the pathways of two models."""

import pytest
import torch

from amd_hf import AMDConfig, AMDModel
from amd_hf.training.merging import APPEARANCE_PREFIXES, merge_pathways


def test_segments_come_from_one_model_and_motion_from_the_other() -> None:
    first, second = (AMDModel(AMDConfig.tiny()).eval() for _ in range(2))
    pair = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        masks = first(pixel_values=pair).segment_masks
        flow = second(pixel_values=pair, pixel_flow_only=True, return_loss=False).flow_scales[0]
    merged = merge_pathways(first, second)
    with torch.no_grad():
        assert torch.equal(merged(pixel_values=pair).segment_masks, masks)
        found = merged(pixel_values=pair, pixel_flow_only=True, return_loss=False).flow_scales[0]
    assert torch.equal(found, flow)


def test_every_weight_belongs_to_one_pathway() -> None:
    names = {name.split(".")[0] for name, _ in AMDModel(AMDConfig.tiny()).named_parameters()}
    appearance = {prefix.rstrip(".") for prefix in APPEARANCE_PREFIXES}
    assert appearance < names
    assert len(names) > len(appearance)


def test_other_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the configuration of `appearance`"):
        merge_pathways(AMDModel(AMDConfig.tiny()), AMDModel(AMDConfig.small()))
