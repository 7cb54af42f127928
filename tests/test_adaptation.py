"""Test-time adaptation: a copy learns one video, everything of the caller stays as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDModel
from amd_hf.adaptation_amd import (
    AdaptationArguments,
    AdaptationResult,
    adapt_to_video,
    adaptation_scale,
)
from amd_hf.frame_cache_amd import FrameCache
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.video_amd import VideoWriter

SMALL = {"crop_size": 48, "short_side": 52, "batch_size": 1}


def _clip(count: int = 6, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A textured square that moves 2 pixels a frame over a textured ground."""
    generator = np.random.default_rng(0)
    ground = generator.integers(60, 120, (height, width, 3), dtype=np.uint8)
    square = generator.integers(150, 255, (16, 16, 3), dtype=np.uint8)
    frames = []
    for number in range(count):
        frame = ground.copy()
        frame[12:28, 4 + 2 * number : 20 + 2 * number] = square
        frames.append(frame)
    return frames


def _states_equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_callers_model_and_random_state_stay(tiny_model: AMDModel, is_training: bool) -> None:
    tiny_model.train(is_training)
    tiny_model.segment_classifier.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    random_state = torch.get_rng_state()
    adapted = adapt_to_video(tiny_model, _clip(), 2, **SMALL)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert tiny_model.training == is_training
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())
    assert all(weight.grad is None for weight in tiny_model.parameters())
    assert not adapted.training
    assert not any(module.training for module in adapted.modules())
    assert not _states_equal(adapted, tiny_model)
    assert not adapted.segment_classifier.weight.requires_grad
    assert all(weight.grad is None for weight in adapted.parameters())


def test_same_seed_same_result_other_seed_other_result(tiny_model: AMDModel) -> None:
    first = adapt_to_video(tiny_model, _clip(), 3, seed=1, **SMALL)
    torch.rand(7)
    assert _states_equal(first, adapt_to_video(tiny_model, iter(_clip()), 3, seed=1, **SMALL))
    assert not _states_equal(first, adapt_to_video(tiny_model, _clip(), 3, seed=2, **SMALL))


def test_the_loss_goes_down(tiny_model: AMDModel) -> None:
    # Both frames equal: the best explanation is no motion, which the read-out bias alone can give.
    frames = [_clip()[0]] * 2
    bias = tiny_model.segment_flow.readout
    for weight in bias.parameters():
        nn.init.constant_(weight, 0.05)
    result = adapt_to_video(
        tiny_model, frames, 40, learning_rate=2e-2, return_history=True, dropout=False, **SMALL
    )
    assert np.mean(result.losses[-5:]) < 0.8 * np.mean(result.losses[:5])


def test_history_and_schedule(tiny_model: AMDModel) -> None:
    seen: list[tuple[int, int, float]] = []
    result = adapt_to_video(
        tiny_model,
        _clip(),
        4,
        callback=lambda *args: seen.append(args),
        return_history=True,
        **SMALL,
    )
    assert isinstance(result, AdaptationResult)
    assert result.num_steps == 4
    assert result.num_frames == 6
    assert seen == [(step + 1, 4, loss) for step, loss in enumerate(result.losses)]
    expected = [(1e-4 - 1e-6) * (1 - step / 4) ** 0.9 + 1e-6 for step in range(4)]
    assert result.learning_rates == pytest.approx(expected)
    assert result.seconds > 0


def test_first_step_is_adam_on_the_pair_loss(tiny_model: AMDModel) -> None:
    """One step by hand: eval-mode statistics and the full frame leave nothing to chance."""
    frames = _clip(2, 48, 48)
    adapted = adapt_to_video(
        tiny_model,
        frames,
        1,
        batch_size=1,
        crop_size=48,
        short_side=48,
        short_side_range=(1.0, 1.0),
        batch_norm="eval",
        dropout=False,
    )
    mean = torch.tensor(tiny_model.config.image_mean).view(3, 1, 1)
    std = torch.tensor(tiny_model.config.image_std).view(3, 1, 1)
    pair = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    optimizer = torch.optim.Adam(tiny_model.parameters(), 1e-4, weight_decay=1e-6)
    tiny_model(pixel_values=((pair - mean) / std)[None]).loss.backward()
    optimizer.step()
    for (name, value), other in zip(
        tiny_model.state_dict().items(), adapted.state_dict().values(), strict=True
    ):
        # A tenth of the step: Adam's first step is the sign of the gradient, noise where it is ~0.
        torch.testing.assert_close(other, value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("parameters", "is_adapted"),
    [
        ("all", lambda name: True),
        ("motion", lambda name: name.startswith("segment_flow.")),
        ("appearance", lambda name: name.startswith(("appearance.", "segment_classifier."))),
        (lambda name: "norm1" in name, lambda name: "norm1" in name),
    ],
)
def test_chosen_parameters_adapt(tiny_model: AMDModel, parameters, is_adapted) -> None:
    adapted = adapt_to_video(tiny_model, _clip(), 2, parameters=parameters, **SMALL)
    before = dict(tiny_model.named_parameters())
    changed = {
        name for name, weight in adapted.named_parameters() if not weight.equal(before[name])
    }
    allowed = {name for name in before if is_adapted(name)}
    assert changed <= allowed
    assert len(changed) >= 0.5 * len(allowed)
    assert all(weight.requires_grad for weight in adapted.parameters())


def test_batch_norm_mode(tiny_model: AMDModel) -> None:
    def statistics(mode: str) -> torch.Tensor:
        adapted = adapt_to_video(tiny_model, _clip(), 1, batch_norm=mode, **SMALL)
        return torch.cat(
            [module.running_mean for module in adapted.modules() if hasattr(module, "running_mean")]
        )

    kept = torch.cat(
        [module.running_mean for module in tiny_model.modules() if hasattr(module, "running_mean")]
    )
    assert statistics("eval").equal(kept)
    assert not statistics("train").equal(kept)


def test_zero_steps_give_a_copy(tiny_model: AMDModel) -> None:
    adapted = adapt_to_video(tiny_model, _clip(), 0, **SMALL)
    assert adapted is not tiny_model
    assert _states_equal(adapted, tiny_model)


def test_half_precision_weights_are_adapted_in_full(tiny_model: AMDModel) -> None:
    half = tiny_model.to(torch.bfloat16)
    adapted = adapt_to_video(half, _clip(), 2, learning_rate=1e-2, **SMALL)
    assert adapted.dtype == torch.bfloat16
    assert half.dtype == torch.bfloat16
    assert not _states_equal(adapted, half)


def test_autocast(tiny_model: AMDModel) -> None:
    result = adapt_to_video(
        tiny_model, _clip(), 1, autocast_dtype=torch.bfloat16, return_history=True, **SMALL
    )
    exact = adapt_to_video(tiny_model, _clip(), 1, return_history=True, **SMALL)
    assert result.losses[0] == pytest.approx(exact.losses[0], rel=0.05)
    assert result.losses != exact.losses


@pytest.mark.slow
# Of torch itself, which traces autograd functions and imports its own scripted ones.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_compiled_steps_are_the_plain_ones(tiny_model: AMDModel) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = adapt_to_video(tiny_model, _clip(), 3, return_history=True, **SMALL)
    options = {"backend": "aot_eager"}
    compiled = adapt_to_video(
        tiny_model, _clip(), 3, return_history=True, compile_options=options, **SMALL
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, atol=1e-4, rtol=1e-3)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled.model(pixel_values=torch.zeros(1, 3, 64, 96))  # the result is not compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_works_without_gradients_around_it(tiny_model: AMDModel) -> None:
    with torch.inference_mode():
        adapted = adapt_to_video(tiny_model, _clip(), 1, **SMALL)
    assert not _states_equal(adapted, tiny_model)


def test_video_file_equals_its_frames(tiny_model: AMDModel, tmp_path: Path) -> None:
    from amd_hf.video_amd import FrameStream

    path = tmp_path / "clip.mp4"
    with VideoWriter(path) as writer:
        for frame in _clip():
            writer.write(frame)
    from_file = adapt_to_video(tiny_model, path, 1, **SMALL)
    assert _states_equal(from_file, adapt_to_video(tiny_model, list(FrameStream(path)), 1, **SMALL))


def test_time_limit_stops_the_steps(tiny_model: AMDModel) -> None:
    start = time.monotonic()
    result = adapt_to_video(
        tiny_model, _clip(), 100_000, time_limit=0.5, return_history=True, **SMALL
    )
    assert 1 <= result.num_steps < 100_000
    assert time.monotonic() - start < 20
    late = adapt_to_video(tiny_model, _clip(), 5, time_limit=1e-9, return_history=True, **SMALL)
    assert late.num_steps == 1, "at least one step is taken"
    # The learning rate decays with the time that is used up.
    assert result.learning_rates[-1] < 0.9 * result.learning_rates[0] or result.num_steps < 3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 3), (300, 6), (90, 40)])
def test_any_frame_size_works(tiny_model: AMDModel, height: int, width: int) -> None:
    frames = [
        np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for number in range(3)
    ]
    result = adapt_to_video(
        tiny_model, frames, 1, batch_size=1, crop_size=64, short_side=40, return_history=True
    )
    assert np.isfinite(result.losses).all()


def test_bad_videos_give_one_sentence(tiny_model: AMDModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 frames to adapt to it, got 1"):
        adapt_to_video(tiny_model, _clip(1), 1, **SMALL)
    with pytest.raises(ValueError, match="at least 2 frames to adapt to it, got 0"):
        adapt_to_video(tiny_model, [], 1, **SMALL)
    with pytest.raises(ValueError, match="at least 4 frames to adapt to it, got 3"):
        adapt_to_video(tiny_model, _clip(3), 1, frame_gap=3, **SMALL)
    with pytest.raises(ValueError, match=r"same size and shape, but frame 1 is 64 x 30"):
        adapt_to_video(tiny_model, [_clip()[0], _clip()[1][:30]], 1, **SMALL)
    with pytest.raises(ValueError, match=r"There is no file .*nothing\.mp4"):
        adapt_to_video(tiny_model, tmp_path / "nothing.mp4", 1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_steps": -1}, "`num_steps` must be at least 0, got -1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"crop_size": 16}, "`crop_size` must be at least 32"),
        ({"short_side": 20}, "must be at least 32"),
        ({"short_side_range": (0.9, 1.2)}, "0 < low <= high <= 1"),
        ({"frame_gap": 0}, "`frame_gap` must be"),
        ({"frame_gap": (3, 1)}, "`frame_gap` must be"),
        ({"max_frames": 3}, "`max_frames` must be at least 4"),
        ({"learning_rate": 0.0}, "`learning_rate` must be at least"),
        ({"time_limit": 0}, "`time_limit` must be positive"),
        ({"parameters": "head"}, "`parameters` must be one of"),
        ({"batch_norm": "frozen"}, "`batch_norm` must be"),
        ({"autocast_dtype": torch.float64}, "`autocast_dtype` must be"),
    ],
)
def test_bad_settings_give_one_sentence(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AdaptationArguments(**settings)  # type: ignore[arg-type]


def test_wrong_model_and_unknown_setting(tiny_model: AMDModel) -> None:
    with pytest.raises(TypeError, match=r"must be an AMDModel .*got AMDForSemantic"):
        adapt_to_video(AMDForSemanticSegmentation(AMDConfig.tiny()), _clip(), 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Unknown settings \['steps'\].*crop_size"):
        adapt_to_video(tiny_model, _clip(), 1, steps=3)
    with pytest.raises(ValueError, match="selects no parameter"):
        adapt_to_video(tiny_model, _clip(), 1, parameters=lambda name: False, **SMALL)


def test_diverging_loss_is_reported(tiny_model: AMDModel) -> None:
    with torch.no_grad():
        tiny_model.segment_classifier.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="The loss is nan at adaptation step 0; lower"):
        adapt_to_video(tiny_model, _clip(), 1, **SMALL)


def test_cache_memory_is_bounded_and_spreads_evenly() -> None:
    decoded = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal decoded
        for _ in range(1000):
            decoded += 1
            yield np.zeros((32, 40, 3), dtype=np.uint8)

    cache = FrameCache(source(), short_side=32, max_frames=64)
    assert decoded == 1000
    assert 32 <= len(cache.frames) <= 64
    numbers = np.array(sorted(cache.frames))
    assert numbers[0] < 100
    assert numbers[-1] > 800
    # Runs of 8 adjacent frames: 7 of 8 frames start a pair of neighbors.
    assert len(cache.pairs) >= 0.8 * len(numbers)
    assert all(second - first == 1 for first, second in cache.pairs)


def test_cache_keeps_all_of_a_short_video_and_all_gaps() -> None:
    cache = FrameCache(_clip(), short_side=48, gaps=(1, 3))
    assert sorted(cache.frames) == list(range(6))
    gaps = sorted(second - first for first, second in cache.pairs)
    assert gaps == [1] * 5 + [3] * 3


def test_crops_of_a_pair_show_the_same_window() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cache = FrameCache([frame, 255 - frame], short_side=60)
    generator = torch.Generator().manual_seed(0)
    crops = [cache.sample_pair(generator, 48) for _ in range(8)]
    for crop in crops:
        assert crop.shape == (2, 3, 48, 48)
        torch.testing.assert_close(
            crop[0] + crop[1], torch.full((3, 48, 48), 255.0), rtol=0, atol=1
        )
    assert len({float(crop[0].sum()) for crop in crops}) == 8, "windows must vary"


def test_frames_are_read_until_the_damage(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from _clip(3)
        raise ValueError("frame 3 is damaged")

    cache = FrameCache(broken(), short_side=48)
    assert len(cache.frames) == 3
    assert "frame 3 is damaged" in caplog.text
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        FrameCache([*_clip(1), np.zeros(3)], short_side=48)


def test_scale_follows_the_processor() -> None:
    assert adaptation_scale(AMDImageProcessor()) == {"short_side": 400, "crop_size": 384}
    scale = adaptation_scale(AMDImageProcessor(size={"shortest_edge": 192}))
    assert scale == {"short_side": 196, "crop_size": 188}
    scale = adaptation_scale(AMDImageProcessor(size={"height": 32, "width": 64}))
    AdaptationArguments(**scale)


def test_a_late_reader_still_takes_one_pair() -> None:
    """With frames three apart, two frames are no pair yet."""
    cache = FrameCache(_clip(), short_side=48, gaps=(3,), deadline=0.0)
    assert cache.pairs == [(0, 3)]
    assert len(cache.frames) == 4
