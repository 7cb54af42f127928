"""The models: outputs, published sizes and weights, input sizes, fine-tuning, error texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDModel, AMDModelOutput

from .modeling_inputs import IMAGE_FIELDS, PAIR_FIELDS, random_pair, set_statistics

NUM_PARAMETERS = {"appearance": 28_818_757, "motion": 1_721_714, "total": 30_540_471}


class TestOutputs:
    def test_image(self, tiny_model: AMDModel) -> None:
        output = tiny_model(pixel_values=torch.randn(2, 3, 40, 52))
        assert isinstance(output, AMDModelOutput)
        assert set(output) == IMAGE_FIELDS
        assert output.segment_logits.shape == (2, 5, 5, 7)
        torch.testing.assert_close(output.segment_masks, output.segment_logits.softmax(dim=1))

    def test_pair(self, tiny_model: AMDModel) -> None:
        output = tiny_model(pixel_values=random_pair(batch=3))
        assert set(output) == PAIR_FIELDS
        assert output.loss.shape == ()
        assert output.segment_logits.shape == (3, 2, 5, 6, 8)
        torch.testing.assert_close(output.segment_masks.sum(dim=2), torch.ones(3, 2, 6, 8))
        assert output.segment_motion_12.shape == (3, 5, 2)
        assert output.segment_flow_21.shape == (3, 2, 64, 64)
        assert output.synthesized_1.shape == (3, 3, 64, 64)
        assert output.visibility_2.shape == (3, 1, 64, 64)
        assert set(output.visibility_2.unique().tolist()) <= {0.0, 1.0}
        assert output.synthesized_1.grad_fn is not None

    def test_a_pair_is_two_images(self, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        pair = random_pair(batch=2)
        of_pair = tiny_model(pixel_values=pair, return_loss=False).segment_logits
        for frame in (0, 1):
            of_image = tiny_model(pixel_values=pair[:, frame]).segment_logits
            torch.testing.assert_close(of_pair[:, frame], of_image)

    def test_without_loss(self, tiny_model: AMDModel) -> None:
        pair = random_pair()
        output = tiny_model(pixel_values=pair, return_loss=False)
        assert set(output) == {f for f in PAIR_FIELDS if f.startswith("segment_")}
        full = tiny_model(pixel_values=pair)
        assert torch.equal(output.segment_motion_12, full.segment_motion_12)

    def test_pixel_flow_on_request(self, tiny_model: AMDModel) -> None:
        pair = random_pair()
        output = tiny_model(pixel_values=pair, output_pixel_flow=True)
        assert set(output) == PAIR_FIELDS | {"pixel_flow_12", "pixel_flow_21", "flow_scales"}
        assert output.pixel_flow_12.shape == (1, 2, 64, 64)
        assert torch.equal(output.loss, tiny_model(pixel_values=pair).loss)

    def test_motion_warm_up_trains_the_motion_pathway_alone(self, tiny_model: AMDModel) -> None:
        output = tiny_model(pixel_values=random_pair(), pixel_flow_only=True)
        assert output.segment_logits is None
        assert output.segment_motion_12 is None
        output.loss.backward()
        trained = {name for name, p in tiny_model.named_parameters() if p.grad is not None}
        assert trained
        assert all(name.startswith("segment_flow.") for name in trained)

    def test_tuple(self, tiny_model: AMDModel) -> None:
        image = torch.randn(1, 3, 32, 32)
        logits, masks = tiny_model(pixel_values=image, return_dict=False)
        output = tiny_model(pixel_values=image)
        assert torch.equal(logits, output.segment_logits)
        assert torch.equal(masks, output.segment_masks)
        loss, *rest = tiny_model(pixel_values=random_pair(), return_dict=False)
        assert loss.shape == ()
        assert len(rest) == len(PAIR_FIELDS) - 1

    def test_identical_frames_synthesize_each_other(self, tiny_config: AMDConfig) -> None:
        model = AMDModel(tiny_config).eval()
        nn.init.zeros_(model.segment_flow.readout.output.weight)
        nn.init.zeros_(model.segment_flow.readout.output.bias)
        pair = random_pair()[:, :1].expand(-1, 2, -1, -1, -1)
        output = model(pixel_values=pair)
        assert output.loss.detach().abs() < 1e-6
        assert output.visibility_1.min() == 1

    def test_every_part_gets_a_gradient(self, tiny_config: AMDConfig) -> None:
        model = AMDModel(tiny_config)
        # A flow of exactly zero has kinked gradients; a fresh model's flow is near it.
        nn.init.normal_(model.segment_flow.readout.output.bias)
        model.train()(pixel_values=random_pair(batch=2)).loss.backward()
        silent = {
            name
            for name, p in model.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()
        }
        assert not silent
        masks_matter = model.segment_classifier.weight.grad
        assert masks_matter is not None
        assert masks_matter.abs().max() > 0

    def test_diverged_motion_shows_in_the_loss(self, tiny_model: AMDModel) -> None:
        with torch.no_grad():
            tiny_model.segment_flow.readout.output.bias[0] = float("nan")
        loss = tiny_model(pixel_values=random_pair()).loss
        assert loss.isnan()
        loss.backward()  # must not crash the process


class TestPublishedModel:
    def test_number_of_parameters(self) -> None:
        with torch.device("meta"):
            model = AMDModel(AMDConfig.official())
        motion = sum(p.numel() for p in model.segment_flow.parameters())
        total = sum(p.numel() for p in model.parameters())
        assert motion == NUM_PARAMETERS["motion"]
        assert total == NUM_PARAMETERS["total"]
        assert total - motion == NUM_PARAMETERS["appearance"]

    def test_strides_and_dilations(self) -> None:
        with torch.device("meta"):
            stages = AMDModel(AMDConfig.official()).appearance.backbone.stages
        first = [stage[0].conv2 for stage in stages]
        assert [conv.stride[0] for conv in first] == [1, 2, 1, 1]
        assert [conv.dilation[0] for conv in first] == [1, 1, 1, 2]
        assert all(block.conv2.dilation == (2, 2) for block in stages[3])
        assert all(not isinstance(stage[0].shortcut, nn.Identity) for stage in stages)

    def test_initialization(self) -> None:
        model = AMDModel(AMDConfig.small())
        backbone = model.appearance.backbone
        for stage in backbone.stages:
            for block in stage:
                assert block.norm3.weight.abs().max() == 0  # blocks start as the identity
                assert block.norm1.weight.min() == 1
        conv = backbone.stages[3][0].conv2
        deviation = math.sqrt(2 / (conv.out_channels * 9))
        assert float(conv.weight.detach().std()) == pytest.approx(deviation, rel=0.05)
        classifier = model.segment_classifier
        assert classifier.weight.detach().abs().max() <= classifier.in_channels**-0.5
        logits = model(pixel_values=torch.randn(2, 3, 64, 64)).segment_logits
        # Rectified unit features (mean square 1/2) through U(-1/sqrt(n), 1/sqrt(n)): sqrt(1/6).
        assert float(logits.detach().std()) == pytest.approx(6**-0.5, rel=0.3)

    def test_motion_initializations(self) -> None:
        def readout_weight(name: str) -> Tensor:
            return AMDModel(AMDConfig.tiny(motion_initialization=name)).segment_flow.readout.output

        default, kaiming = readout_weight("default"), readout_weight("kaiming")
        assert default.weight.detach().std() > 5 * kaiming.weight.detach().std()
        assert kaiming.bias.detach().abs().max() == 0
        assert default.bias.detach().abs().max() > 0


class TestSizes:
    @pytest.mark.parametrize(
        ("height", "width"), [(32, 32), (33, 47), (32, 200), (200, 32), (97, 161), (130, 64)]
    )
    def test_any_size(self, tiny_model: AMDModel, height: int, width: int) -> None:
        size = (math.ceil(height / 8), math.ceil(width / 8))
        image = torch.randn(1, 3, height, width)
        assert tiny_model(pixel_values=image).segment_logits.shape[-2:] == size
        output = tiny_model(pixel_values=random_pair(1, height, width))
        assert output.segment_masks.shape[-2:] == size
        assert output.loss.isfinite()

    def test_images_are_independent_in_evaluation(self, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        images = torch.randn(3, 3, 40, 40)
        together = tiny_model(pixel_values=images).segment_logits
        alone = torch.cat([tiny_model(pixel_values=image[None]).segment_logits for image in images])
        torch.testing.assert_close(together, alone)

    @pytest.mark.parametrize(
        ("shape", "text"),
        [
            (
                (3, 64, 64),
                r"must have shape \(B, 3, H, W\) or \(B, 2, 3, H, W\), got \(3, 64, 64\)",
            ),
            ((1, 1, 64, 64), r"must have shape .*, got \(1, 1, 64, 64\); pass RGB images"),
            ((1, 3, 3, 64, 64), r"got 3 frames; pass two frames in temporal order"),
            ((1, 2, 4, 64, 64), r"must have shape .*, got \(1, 2, 4, 64, 64\)"),
            ((1, 3, 31, 64), r"at least 32 pixels high and wide, got \(31, 64\); enlarge"),
            ((1, 2, 3, 64, 8), r"at least 32 pixels high and wide, got \(64, 8\)"),
        ],
    )
    def test_refuses_other_shapes(
        self, tiny_model: AMDModel, shape: tuple[int, ...], text: str
    ) -> None:
        with pytest.raises(ValueError, match=text):
            tiny_model(pixel_values=torch.zeros(shape))

    def test_refuses_integers(self, tiny_model: AMDModel) -> None:
        image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        with pytest.raises(TypeError, match=r"must be floating point, got torch\.uint8; normali"):
            tiny_model(pixel_values=image)


class TestSemanticSegmentation:
    @pytest.fixture
    def model(self) -> AMDForSemanticSegmentation:
        return AMDForSemanticSegmentation(AMDConfig.tiny(num_labels=4)).eval()

    def test_only_the_classifier_is_new(self, tmp_path: Path, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        tiny_model.save_pretrained(tmp_path)
        loaded, info = AMDForSemanticSegmentation.from_pretrained(
            tmp_path, num_labels=7, output_loading_info=True
        )
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert not info["unexpected_keys"]
        assert loaded.classifier.out_channels == 7
        state = loaded.state_dict()
        for name, tensor in tiny_model.appearance.state_dict().items():
            assert torch.equal(state[f"appearance.{name}"], tensor), name

    def test_round_trip(self, tmp_path: Path, model: AMDForSemanticSegmentation) -> None:
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert isinstance(loaded, AMDForSemanticSegmentation)
        image = torch.randn(1, 3, 40, 40)
        assert torch.equal(loaded(pixel_values=image).logits, model(pixel_values=image).logits)

    def test_output(self, model: AMDForSemanticSegmentation) -> None:
        labels = torch.randint(0, 4, (2, 40, 56))
        labels[0, :20] = 255
        image = torch.randn(2, 3, 40, 56)
        output = model(pixel_values=image, labels=labels)
        assert isinstance(output, SemanticSegmenterOutput)
        assert output.logits.shape == (2, 4, 5, 7)
        scores = nn.functional.interpolate(output.logits, size=(40, 56), mode="bilinear")
        expected = nn.functional.cross_entropy(scores, labels, ignore_index=255)
        torch.testing.assert_close(output.loss, expected)
        loss, logits = model(pixel_values=image, labels=labels, return_dict=False)
        assert torch.equal(loss, output.loss)
        assert torch.equal(logits, output.logits)
        assert model(pixel_values=image).loss is None

    def test_all_pixels_ignored(self, model: AMDForSemanticSegmentation) -> None:
        labels = torch.full((1, 40, 40), 255)
        loss = model(pixel_values=torch.randn(1, 3, 40, 40), labels=labels).loss
        assert loss.detach() == 0
        loss.backward()

    def test_learns(self, model: AMDForSemanticSegmentation) -> None:
        image = torch.randn(1, 3, 48, 48)
        labels = (image.mean(dim=1) > 0).long()[:, :48, :48]
        labels[:, :, 24:] = 3
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
        losses = []
        for _ in range(15):
            loss = model(pixel_values=image, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            (
                {"pixel_values": torch.zeros(1, 2, 3, 64, 64)},
                r"must have shape \(B, 3, H, W\), got",
            ),
            (
                {
                    "pixel_values": torch.zeros(2, 3, 64, 64),
                    "labels": torch.zeros(1, 64, 64).long(),
                },
                r"`labels` must have shape \(2, H, W\) and hold integers, got \(1, 64, 64\)",
            ),
            (
                {
                    "pixel_values": torch.zeros(1, 3, 64, 64),
                    "labels": torch.zeros(1, 3, 8, 8).long(),
                },
                r"`labels` must have shape \(1, H, W\)",
            ),
            (
                {"pixel_values": torch.zeros(1, 3, 64, 64), "labels": torch.zeros(1, 64, 64)},
                r"hold integers, got \(1, 64, 64\) of torch\.float32; pass one class index",
            ),
        ],
    )
    def test_refuses_other_shapes(
        self, model: AMDForSemanticSegmentation, fields: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(ValueError, match=text):
            model(**fields)


def test_learns_the_motion_of_a_camera() -> None:
    """Fifty steps on one pair find its exact motion, in both directions: the parts agree."""
    config = AMDConfig.tiny(motion_initialization="kaiming")
    scene = nn.functional.interpolate(torch.rand(1, 3, 9, 9), size=(84, 84), mode="bicubic")
    first, second = scene[..., 10:74, 10:74], scene[..., 10:74, 7:71]  # 3 pixels to the right
    mean = torch.tensor(config.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(config.image_std).view(1, 3, 1, 1)
    pair = torch.stack([(255 * frame - mean) / std for frame in (first, second)], dim=1)
    model = AMDModel(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(50):
        output = model(pixel_values=pair)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.2 * losses[0]
    for flow, u in ((output.segment_flow_12, 3.0), (output.segment_flow_21, -3.0)):
        assert flow.detach().mean(dim=(0, 2, 3)).tolist() == pytest.approx([u, 0.0], abs=1.0)
