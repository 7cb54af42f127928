"""The benchmark compares like with like, and times what it says."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from amd_hf import AMDConfig, AMDModel
from amd_hf.benchmarking import (
    growth,
    inputs,
    limits,
    processes,
    timing,
    workloads,
    workloads_loader,
    workloads_video,
)
from amd_hf.benchmarking.published_replica import PublishedReplica

from . import oracle


def lively_model(**overrides: Any) -> AMDModel:
    """A tiny model whose motion and masks are far from zero and from flat."""
    torch.manual_seed(0)
    model = AMDModel(AMDConfig.tiny(zero_init_residual=False, head_dropout=0.0, **overrides))
    with torch.no_grad():
        model.segment_classifier.weight.mul_(20)
        model.segment_flow.readout.output.weight.mul_(20)
    return model


class TestReplica:
    @pytest.mark.parametrize("normalize", [False, True])
    def test_same_outputs_and_gradients(self, normalize: bool) -> None:
        model = lively_model(normalize_cost_volume=normalize).double().train()
        pairs = inputs.example_pairs(2, 64).double()
        ours, theirs = model(pixel_values=pairs), PublishedReplica(model)(pairs)
        assert ours.segment_motion_12.abs().max() > 0.1
        torch.testing.assert_close(ours.segment_logits, theirs.segment_logits)
        torch.testing.assert_close(ours.segment_motion_12, theirs.segment_motion_12)
        torch.testing.assert_close(ours.segment_motion_21, theirs.segment_motion_21)
        torch.testing.assert_close(ours.loss, theirs.loss)
        weights = list(model.parameters())
        for first, second in zip(
            torch.autograd.grad(ours.loss, weights),
            torch.autograd.grad(theirs.loss, weights),
            strict=True,
        ):
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-10)

    def test_dropped_terms_are_computed(self) -> None:
        model = lively_model().eval()
        with torch.no_grad():
            output = PublishedReplica(model)(inputs.example_pairs(1, 64))
        assert output.dropped > 0
        assert output.dropped != output.loss

    @pytest.mark.parity
    def test_recorded_loss(self, oracle_dir: Path) -> None:
        model = oracle.official_model(oracle_dir)
        expected = oracle.tensors(oracle_dir / "case_a_eval.safetensors")
        pair = oracle.tensors(oracle_dir / "inputs.safetensors")["a.pixel_values"]
        with torch.no_grad():
            output = PublishedReplica(model)(pair)
        torch.testing.assert_close(output.loss, expected["loss"], rtol=0, atol=oracle.LOSS_ATOL)
        torch.testing.assert_close(
            output.segment_motion_12,
            expected["fw.segment_flow_vectors"],
            rtol=0,
            atol=oracle.FLOW_ATOL,
        )

    def test_disagreement_stops_the_benchmark(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = lively_model()
        monkeypatch.setattr(
            PublishedReplica, "segment", lambda self, x: 2 * model.segment_images(x)
        )
        with pytest.raises(RuntimeError, match="disagree: loss by"):
            workloads.compare_with_replica(model, inputs.example_pairs(1, 64))
        assert model.training


class TestTiming:
    def test_rounds_alternate_and_the_first_does_not_count(self) -> None:
        calls: list[str] = []

        def first() -> None:
            calls.append("first")
            if len(calls) == 1:
                time.sleep(0.2)

        timings = timing.measure({"first": first, "second": lambda: calls.append("second")}, 2)
        assert calls == ["first", "second"] * 3
        assert timings["first"].slowest < 0.2
        assert timings["first"].rounds == 2

    def test_waiting_is_no_processor_time(self) -> None:
        measured = timing.measure({"wait": lambda: time.sleep(0.05)}, 1)["wait"]
        assert measured.median >= 0.05
        assert measured.cpu < 0.05

    def test_needs_a_round(self) -> None:
        with pytest.raises(ValueError, match="`rounds` must be at least 1"):
            timing.measure({}, 0)

    def test_speedup_is_against_the_published_computation(self) -> None:
        slow, fast = (timing.Timing(s, s, s, s / 2, 1) for s in (3.0, 1.5))
        measurement = workloads.Measurement("work", "", {"published": slow, "ours": fast})
        assert measurement.speedup("ours") == 2.0
        assert workloads.Measurement("work", "", {"ours": fast}).speedup("ours") is None


class TestWorkloads:
    def test_training_steps_reduce_the_loss(self) -> None:
        pairs = inputs.example_pairs(1, 64)
        model = inputs.seeded_model(AMDConfig.tiny(head_dropout=0.0))
        before = [parameter.clone() for parameter in model.parameters()]
        for options in ({"published": True}, {}, {"autocast": True}):
            step = workloads.TrainingStep(model, pairs, **options)
            losses = [step() for _ in range(8)]
            assert losses[-1] < losses[0]
        for parameter, kept in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter, kept)

    def test_both_optimizers_take_the_same_step(self) -> None:
        pairs = inputs.example_pairs(1, 64)
        model = inputs.seeded_model(AMDConfig.tiny(head_dropout=0.0)).double()
        steps = [workloads.TrainingStep(model, pairs.double(), published=p) for p in (True, False)]
        losses = [[step() for _ in range(3)] for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)

    def test_flops_of_a_convolution(self) -> None:
        layer = torch.nn.Conv2d(3, 5, 3, padding=1)
        assert workloads.count_flops(lambda: layer(torch.zeros(2, 3, 8, 8))) == (
            2 * 2 * 8 * 8 * 3 * 5 * 9
        )

    def test_flops_of_the_published_configuration(self) -> None:
        """The forward pass of a 384 pair has the 335.0 GFLOP of convolutions on record."""
        with FakeTensorMode():  # shapes only
            model = AMDModel(AMDConfig.official())
            pairs = torch.zeros(1, 2, 3, 384, 384)
            measured = workloads.count_flops(lambda: model(pixel_values=pairs, return_loss=False))
        assert measured / 1e9 == pytest.approx(335.0, rel=0.02)

    def test_frames_move(self, tmp_path: Path) -> None:
        files = inputs.write_frames(tmp_path, 3, (48, 64))
        assert [file.name for file in files] == ["00000.jpg", "00001.jpg", "00002.jpg"]
        assert files[0].read_bytes() != files[1].read_bytes()

    def test_adaptation_of_both_kinds(self) -> None:
        measured = workloads_video.time_adaptation(
            AMDConfig.tiny(),
            num_steps=1,
            num_frames=3,
            frame_size=(72, 96),
            short_side=64,
            small_sides=(48, 36),
        )
        small = {"bf16, crops of 46", "bf16, crops of 34"}
        assert set(measured.timings) == {"published", "fp32", "bf16"} | small
        whole = measured.notes["seconds_of_100_steps"]
        assert set(whole) == {"published", "bf16"} | small
        assert whole["published"] == pytest.approx(100 * measured.timings["published"].median)
        for name in set(whole) - {"published"}:
            assert measured.timings[name].median <= whole[name]

    def test_what_is_done_once_does_not_count_a_hundred_times(self) -> None:
        # 3 s once and 0.5 s per step: runs of 2 and 8 steps.
        assert workloads_video.whole_run_seconds(4.0, 7.0, 2) == pytest.approx(3 + 100 * 0.5)
        # Nothing once: proportional.
        assert workloads_video.whole_run_seconds(1.0, 4.0, 2) == pytest.approx(50.0)

    def test_loader_and_its_limit(self) -> None:
        pytest.importorskip("datasets", reason="needs the extra `train`")
        measured = workloads_loader.time_loader(0, 1, batch=2, crop=64, rounds=1)
        assert set(measured.timings) == {"loader", "decode", "decode in full"}
        notes = measured.notes
        rates = notes["pairs_per_second"]
        assert notes["share_of_limit"] == pytest.approx(rates["loader"] / rates["decode"])
        assert all(value >= 0 for value in notes["milliseconds_per_pair"].values())

    def test_decoding_alone_takes_the_size_that_is_wanted(self) -> None:
        buffer = io.BytesIO()
        Image.fromarray(limits.example_frame((96, 128))).save(buffer, "JPEG")
        data = buffer.getvalue()
        assert workloads_loader.decode(data, 1.3).size == (128, 96)
        assert workloads_loader.decode(data, 0.3).size == (64, 48)
        alone = iter(workloads_loader.DecodeAlone([(data, 0.3)] * 4, 3))
        assert [next(alone) for _ in range(2)] == [3, 3]

    @pytest.mark.slow
    def test_start_and_memory(self) -> None:
        timings = workloads_video.time_start(1).timings
        assert timings["import amd_hf"].median > timings["import torch"].median / 2
        held = torch.zeros(100_000_000).fill_(1.0)  # 0.4 GB here count for no child
        memory = workloads_video.memory_of_training(AMDConfig.tiny(), 64, 1)
        assert 0.05 < memory["import"] < memory["fp32"] * 1.1
        mine = timing.peak_memory()
        assert mine is not None
        assert mine > held.numel() * 4 / 1e9
        assert memory["import"] < mine

    @pytest.mark.slow
    def test_point_in_a_process_of_its_own(self) -> None:
        point = growth.Point("inference", "side", 64, preset="tiny", side=64, rounds=1)
        row = growth._measure_aside(point)
        assert row["seconds"] > 0
        assert 0.05 < row["memory"] < 4

    def test_unknown_work(self) -> None:
        with pytest.raises(ValueError, match="There is no 'rest' of the preset 'tiny'"):
            growth.measure_point(growth.Point("rest", "side", 64, preset="tiny"))


class TestLimits:
    def test_rates_are_plausible(self) -> None:
        rates = limits.gemm_limits(64, 1) | limits.convolution_limits(8, 1, 1)
        assert set(rates) >= {"fp32", "bf16", "bf16_training"}
        assert all(1e6 < rate < 1e15 for rate in rates.values())

    def test_decoding(self) -> None:
        assert 0 < limits.decode_limit(1, (48, 64)).median < 1


@pytest.mark.slow
def test_processes() -> None:
    rows = processes.time_processes(
        (1, 2), (48, 64), num_videos=2, num_frames=3, preset=AMDConfig.tiny().to_diff_dict()
    )
    works = {row["work"] for row in rows}
    assert len(rows) == 2 * len(works) == 8
    assert all(row["seconds"] > 0 for row in rows)
