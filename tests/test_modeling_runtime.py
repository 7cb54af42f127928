"""How the models run: precision, activation checkpointing, compilers, saving, CUDA."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from amd_hf import AMDModel

from .modeling_inputs import PAIR_FIELDS, random_pair, set_statistics


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_weights(self, tiny_model: AMDModel, dtype: torch.dtype) -> None:
        set_statistics(tiny_model)
        pair = random_pair()
        expected = tiny_model(pixel_values=pair)
        half = tiny_model.to(dtype)
        output = half(pixel_values=pair.to(dtype))
        assert output.segment_logits.dtype == dtype
        for name in ("loss", "segment_masks", "segment_motion_12", "segment_flow_12"):
            assert output[name].dtype == torch.float32, name
        torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0.02)
        torch.testing.assert_close(output.segment_masks, expected.segment_masks, rtol=0, atol=0.05)
        output.loss.backward()
        gradients = [p.grad for p in half.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_float64_stays(self, tiny_model: AMDModel) -> None:
        output = tiny_model.double()(pixel_values=random_pair().double())
        wide = {name for name, value in output.items() if value.dtype == torch.float64}
        assert wide == PAIR_FIELDS - {"visibility_1", "visibility_2"}

    def test_autocast(self, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        pair = random_pair()
        expected = tiny_model(pixel_values=pair)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = tiny_model(pixel_values=pair)
        assert output.segment_logits.dtype == torch.bfloat16
        narrow = {name for name, value in output.items() if value.dtype != torch.float32}
        assert narrow == {"segment_logits"}
        torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0.02)

    def test_saturated_masks(self, tiny_model: AMDModel) -> None:
        """A segment without any mass gives no NaN, which the published code does."""
        with torch.no_grad():
            tiny_model.segment_classifier.bias[0] = 1e4
        output = tiny_model(pixel_values=random_pair())
        assert output.segment_masks[:, :, 1:].max() == 0
        assert all(value.isfinite().all() for value in output.values())
        output.loss.backward()
        gradients = [p.grad for p in tiny_model.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)


def enable_checkpointing(model: AMDModel) -> None:
    """Switches it on, by the name that transformers gives it: the old one until 5.18."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


class TestActivationCheckpointing:
    @staticmethod
    def one_step(model: AMDModel, pair: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(5)  # the same channels are dropped
        loss = model.train()(pixel_values=pair).loss
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    def test_changes_neither_gradients_nor_statistics(self, tiny_model: AMDModel) -> None:
        plain, checkpointed = tiny_model, copy.deepcopy(tiny_model)
        enable_checkpointing(checkpointed)
        blocks = [m for m in checkpointed.modules() if hasattr(m, "gradient_checkpointing")]
        assert blocks
        assert all(block.gradient_checkpointing for block in blocks)
        pair = random_pair(batch=2)
        loss, gradients = self.one_step(plain, pair)
        loss_again, gradients_again = self.one_step(checkpointed, pair)
        assert torch.equal(loss, loss_again)
        assert gradients.keys() == gradients_again.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients_again[name], gradient, msg=name)
        buffers = dict(checkpointed.named_buffers())
        for name, buffer in plain.named_buffers():
            assert torch.equal(buffers[name], buffer), name
        assert int(buffers["appearance.backbone.stages.0.0.norm1.num_batches_tracked"]) == 1

    def test_saves_activations(self, tiny_model: AMDModel) -> None:
        """Fewer tensors are kept for the backward pass."""

        def num_saved(model: AMDModel) -> int:
            saved = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
            ):
                model.train().appearance(torch.randn(1, 3, 64, 64))
            return sum(saved)

        plain = num_saved(tiny_model)
        enable_checkpointing(tiny_model)
        assert num_saved(tiny_model) < 0.7 * plain


class SegmentsOnly(nn.Module):
    """The appearance pathway as a function of an image."""

    def __init__(self, model: AMDModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.segment_images(images).softmax(dim=1)


class TestCompilers:
    def test_export_of_the_appearance_pathway(self, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        module = SegmentsOnly(tiny_model).eval()
        dynamic = {
            "images": {
                0: torch.export.Dim("batch", min=1, max=8),
                2: torch.export.Dim("height", min=32, max=512),
                3: torch.export.Dim("width", min=32, max=512),
            }
        }
        program = torch.export.export(module, (torch.randn(2, 3, 64, 96),), dynamic_shapes=dynamic)
        for shape in ((1, 3, 40, 57), (3, 3, 65, 32)):
            image = torch.randn(shape)
            torch.testing.assert_close(program.module()(image), module(image))

    @pytest.mark.slow
    # The compiler warns about its own internals.
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
    def test_compile_in_one_graph(self, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        pair = random_pair()
        expected = tiny_model(pixel_values=pair)
        compiled = torch.compile(tiny_model, fullgraph=True)
        output = compiled(pixel_values=pair)
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(output.segment_flow_12, expected.segment_flow_12)
        output.loss.backward()
        image = torch.randn(1, 3, 48, 48)
        torch.testing.assert_close(
            compiled(pixel_values=image).segment_masks, tiny_model(pixel_values=image).segment_masks
        )


class TestSaving:
    def test_round_trip(self, tmp_path: Path, tiny_model: AMDModel) -> None:
        set_statistics(tiny_model)
        tiny_model.save_pretrained(tmp_path)
        pair = random_pair()
        expected = tiny_model(pixel_values=pair)
        for auto in (AMDModel, AutoModel):
            loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
            assert isinstance(loaded, AMDModel)
            assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
            assert not loaded.training
            output = loaded(pixel_values=pair)
            for name, value in expected.items():
                assert torch.equal(output[name], value), name

    def test_bfloat16(self, tmp_path: Path, tiny_model: AMDModel) -> None:
        tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
        assert AMDModel.from_pretrained(tmp_path).dtype == torch.bfloat16
        assert AMDModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32

    def test_other_number_of_segments(self, tmp_path: Path, tiny_model: AMDModel) -> None:
        tiny_model.save_pretrained(tmp_path)
        loaded, info = AMDModel.from_pretrained(
            tmp_path, num_segments=3, ignore_mismatched_sizes=True, output_loading_info=True
        )
        assert {key[0] for key in info["mismatched_keys"]} == {
            "segment_classifier.weight",
            "segment_classifier.bias",
        }
        assert loaded(pixel_values=torch.randn(1, 3, 32, 32)).segment_logits.shape[1] == 3

    def test_constants_survive_loading(self, tmp_path: Path, tiny_model: AMDModel) -> None:
        """Mean and deviation live in the configuration, not in buffers that loading would lose."""
        tiny_model.config.image_mean = [1.0, 2.0, 3.0]
        tiny_model.save_pretrained(tmp_path)
        loaded = AMDModel.from_pretrained(tmp_path)
        image = torch.zeros(1, 3, 64, 64)
        rgb = loaded.frames_in_rgb(image)
        assert rgb[0, :, 0, 0].tolist() == pytest.approx([1 / 255, 2 / 255, 3 / 255])


@pytest.mark.gpu
class TestCuda:
    def test_equals_the_cpu(self, tiny_model: AMDModel) -> None:
        pair = random_pair(batch=2)
        expected = tiny_model(pixel_values=pair)
        output = tiny_model.cuda()(pixel_values=pair.cuda())
        for name in ("segment_logits", "segment_motion_12", "loss"):
            torch.testing.assert_close(output[name].cpu(), expected[name], rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, tiny_model: AMDModel, dtype: torch.dtype) -> None:
        model = tiny_model.cuda().train()
        with torch.autocast("cuda", dtype=dtype):
            output = model(pixel_values=random_pair(batch=2).cuda())
        assert output.loss.dtype == torch.float32
        assert output.segment_flow_12.dtype == torch.float32
        output.loss.backward()
